"""What matrix instructions and bulk copies do on this device, recorded for the SIMT layer's twins of them.

    python benches/gpu/probes.py > probes.json          needs torch with CUDA and an NVRTC; --dry only compiles

The kernels are kernels/simt/probes_layouts.cu and probes_sm90.cu: one instruction each, its operands and results laid
bare. Operands are small whole numbers that follow from a seed, so that sums are exact and a record is the launch and
a hash of its result (FNV-1a) with the first bytes beside it. `UNGUIDE_TEST_PROBES=probes.json cargo test --features simt --test gpu what_the_hardware_did`
replays it on the twins, bit by bit.
"""
import ctypes
import glob
import json
import os
import struct
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
POINTWISE, WGMMA, BOX = "pointwise", "wgmma", "box"


def number(seed, i):
    """Element i of an operand: a whole number from -4 to 4."""
    return ((i * 2654435761 + seed * 40503) % 2**32 >> 16) % 9 - 4


def halves(seed, count, dtype):
    numbers = torch.tensor([number(seed, i) for i in range(count)], dtype=torch.float32)
    return numbers.to(torch.bfloat16 if dtype == "bf16" else torch.float16)


def cases():
    """Every launch that is recorded."""
    for c in range(4):
        yield {"kernel": "probe_ldmatrix", "kind": POINTWISE, "threads": 32, "c": c, "seed": 1 + c, "dtype": "f16",
               "x": 256, "y": 8, "out_bytes": 512, "shared_bytes": 0}
    for c, dtype in enumerate(("f16", "bf16")):
        for seed in (5, 6):
            yield {"kernel": "probe_mma", "kind": POINTWISE, "threads": 32, "c": c, "seed": seed, "dtype": dtype,
                   "x": 256, "y": 128, "out_bytes": 512, "shared_bytes": 0}
    layouts = json.loads((ROOT / "tests/golden/layouts.json").read_text())
    k_major = ["k_128", "k_64", "k_32", "k_none", "k_none_rows_last"]
    mn_major = ["mn_128", "mn_64", "mn_32", "mn_none"]
    wide = ["mn_128_rows_first", "mn_128_rows_last"]
    products = [("n64_k_k_f16", k_major, k_major, 64), ("n64_k_mn_f16", k_major[:1], mn_major, 64),
                ("n64_mn_k_f16", mn_major, k_major[:1], 64), ("n64_mn_mn_f16", mn_major[:1], mn_major, 64),
                ("n128_k_mn_f16", k_major[:1], wide, 128), ("n64_k_k_bf16", k_major[:1], k_major[:1], 64),
                ("n8_k_k_f16", k_major[:1], k_major[:1], 8), ("n256_k_k_f16", k_major[:1], k_major[:1], 256),
                ("n64_registers_k_f16", [None], k_major[:1], 64), ("n64_registers_k_bf16", [None], k_major[:1], 64)]

    def descriptor(name, piece):
        if name is None:
            return 0
        o = layouts[name]
        return o["starts"][piece] | o["leading"] << 16 | o["stride"] << 32 | o["swizzle"] << 62

    for suffix, lefts, rights, n in products:
        for a in lefts:
            for b in rights:
                pieces = min(len(layouts[name]["starts"]) for name in (a, b) if name)
                for piece in (0, pieces - 1) if a else (0,):
                    yield {"kernel": f"probe_wgmma_{suffix}", "kind": WGMMA, "threads": 128, "seed": 7 + piece,
                           "dtype": suffix.rsplit("_", 1)[1], "x": 16384, "y": 16384, "out_bytes": 64 * n * 4,
                           "a_desc": descriptor(a, piece), "b_desc": descriptor(b, piece), "shared_bytes": 65536}
    for swizzle, row in ((0, 24), (32, 16), (64, 32), (128, 64)):
        for at in ([0, 0], [5, 3], [-3, -2], [60, 50], [200, 0]):
            yield {"kernel": "probe_box", "kind": BOX, "threads": 64, "seed": 0, "dtype": "u16", "extents": [77, 53],
                   "tile": [row, 16], "swizzle": swizzle, "at": at, "out_bytes": row * 32, "shared_bytes": 16392}


def fnv1a(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def boxed(extents):
    """Element i of the tensor is i + 1; rows are multiples of 16 bytes long, with something else between two."""
    width, height = extents
    pitch = (width + 7) // 8 * 8
    rows = [[y * width + x + 1 if x < width else 0xEEEE for x in range(pitch)] for y in range(height)]
    return b"".join(struct.pack(f"<{pitch}H", *row) for row in rows), pitch


class Nvrtc:
    def __init__(self):
        named = [os.environ["UNGUIDE_NVRTC"]] if os.environ.get("UNGUIDE_NVRTC") else []
        near = [str(Path(torch.__file__).parents[1] / "nvidia" / inner) for inner in
                ("cuda_nvrtc/lib/libnvrtc.so*", "cu13/lib/libnvrtc.so*", "cu12/lib/libnvrtc.so*")]
        here = [str(ROOT / "target/nvrtc/nvidia/cuda_nvrtc/lib/libnvrtc.so*"), "/usr/local/cuda/lib64/libnvrtc.so*"]
        found = named + [path for pattern in near + here for path in sorted(glob.glob(pattern)) if ".alt." not in path]
        for path in found + ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]:
            try:
                self.library = ctypes.CDLL(path)
                return
            except OSError:
                continue
        sys.exit("no NVRTC was found; UNGUIDE_NVRTC names one")

    def compile(self, file, arch):
        source = (ROOT / f"kernels/simt/{file}.cu").read_bytes()
        options = [f"--gpu-architecture={arch}", "--std=c++17", f"--include-path={ROOT / 'kernels/include'}"]
        options = (ctypes.c_char_p * len(options))(*map(str.encode, options))
        program, size, nvrtc = ctypes.c_void_p(), ctypes.c_size_t(), self.library
        nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, f"{file}.cu".encode(), 0, None, None)
        if nvrtc.nvrtcCompileProgram(program, len(options), options) != 0:
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, log)
            sys.exit(f"{file}.cu for {arch}: {log.value.decode()}")
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        cubin = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetCUBIN(program, cubin)
        return cubin


class Device:
    """The driver's functions; memory and the context are PyTorch's."""

    def __init__(self, cubins):
        torch.zeros(1, device="cuda")
        self.driver, self.modules = ctypes.CDLL("libcuda.so.1"), []
        for cubin in cubins:
            module = ctypes.c_void_p()
            self.call("cuModuleLoadData", ctypes.byref(module), cubin)
            self.modules.append(module)

    def call(self, name, *arguments):
        code = getattr(self.driver, name)(*arguments)
        if code != 0:
            raise RuntimeError(f"{name} answers {code}")

    def function(self, kernel, shared_bytes):
        for module in self.modules:
            function = ctypes.c_void_p()
            if self.driver.cuModuleGetFunction(ctypes.byref(function), module, kernel.encode()) == 0:
                if shared_bytes > 48 << 10:
                    self.call("cuFuncSetAttribute", function, 8, shared_bytes)
                return function
        raise RuntimeError(f"no kernel {kernel}")

    def tensor_map(self, address, extents, pitch_bytes, tile, swizzle):
        room = ctypes.create_string_buffer(192)
        at = (ctypes.addressof(room) + 63) // 64 * 64
        u64, u32 = ctypes.c_uint64, ctypes.c_uint32
        uint16, kinds = 1, {0: 0, 32: 1, 64: 2, 128: 3}
        self.call("cuTensorMapEncodeTiled", ctypes.c_void_p(at), uint16, u32(2), ctypes.c_void_p(address),
                  (u64 * 2)(*extents), (u64 * 1)(pitch_bytes), (u32 * 2)(*tile), (u32 * 2)(1, 1), 0, kinds[swizzle], 0, 0)
        return ctypes.string_at(at, 128)

    def run(self, case):
        def put(data):
            return torch.frombuffer(bytearray(data), dtype=torch.uint8).cuda()

        out = torch.full((case["out_bytes"],), 255, dtype=torch.uint8, device="cuda")
        if case["kind"] == BOX:
            data, pitch = boxed(case["extents"])
            x = put(data)
            one = self.tensor_map(x.data_ptr(), case["extents"], 2 * pitch, case["tile"], case["swizzle"])
            params = one + bytes(128) + struct.pack("<Q4i2iq3Q", out.data_ptr(), *case["at"], 0, 0, case["out_bytes"], 2,
                                                    0, 0, 0, 0)
        else:
            x, y = (put(halves(case["seed"] + i, case[key], case["dtype"]).view(torch.uint8).numpy().tobytes())
                    for i, key in enumerate("xy"))
            if case["kind"] == WGMMA:
                params = struct.pack("<5Q", x.data_ptr(), y.data_ptr(), out.data_ptr(), case["a_desc"], case["b_desc"])
            else:
                params = struct.pack("<3Q2q2i2f", x.data_ptr(), y.data_ptr(), out.data_ptr(), 0, 0, case["c"], 0, 0, 0)
        # Tensor maps want 64-byte alignment where the driver copies them from, too.
        room = ctypes.create_string_buffer(len(params) + 64)
        at = (ctypes.addressof(room) + 63) // 64 * 64
        ctypes.memmove(at, params, len(params))
        pointer = (ctypes.c_void_p * 1)(at)
        function = self.function(case["kernel"], case["shared_bytes"])
        self.call("cuLaunchKernel", function, 1, 1, 1, case["threads"], 1, 1, case["shared_bytes"], None, pointer, None)
        torch.cuda.synchronize()
        return out.cpu().numpy().tobytes()


def main():
    dry, nvrtc = "--dry" in sys.argv, Nvrtc()
    hopper = dry or torch.cuda.get_device_capability() == (9, 0)
    files = [("probes_layouts", "sm_90a"), ("probes_sm90", "sm_90a")] if hopper else []
    if not hopper:
        sys.exit("the probes are those of a device of compute capability 9.0")
    cubins = [nvrtc.compile(*file) for file in files]
    if dry:
        print(json.dumps({"device": "none: compiled only", "cubin_bytes": [len(c) for c in cubins],
                          "cases": len(list(cases()))}))
        return
    device = Device(cubins)
    records = []
    for case in cases():
        out = device.run(case)
        records.append(case | {"fnv1a": f"{fnv1a(out):016x}", "first_bytes": out[:64].hex()})
    print(json.dumps({"device": torch.cuda.get_device_name(), "records": records}))


if __name__ == "__main__":
    main()
