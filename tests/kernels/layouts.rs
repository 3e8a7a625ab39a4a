//! Where matrix instructions keep their elements, against tables that are not ours: `tests/golden/layouts.json`, which
//! `make_layouts.py` takes from CuTe. Every element is given a number, the instruction runs through its wrapper, and
//! the numbers must come out where the tables say.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use bytemuck::{Pod, Zeroable, bytes_of, cast_slice};
use half::{bf16, f16};
use serde::Deserialize;
use serde_json::Value;
use unguide::launch::params::{DevicePtr, PointwiseParams};
use unguide::simt::{Mode, Simt};

static GOLDEN: LazyLock<BTreeMap<String, Value>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../golden/layouts.json")).expect("the script writes JSON")
});

fn golden<T: for<'a> Deserialize<'a>>(name: &str) -> T {
    serde_json::from_value(GOLDEN[name].clone()).expect("as the script writes it")
}

/// Element (thread, value) is at `thread[thread] + value[value]`.
#[derive(Deserialize)]
struct Fragment {
    thread: Vec<usize>,
    value: Vec<usize>,
}

impl Fragment {
    /// The element of every register, thread by thread.
    fn elements(&self) -> impl Iterator<Item = usize> {
        self.thread.iter().flat_map(|thread| self.value.iter().map(move |value| thread + value))
    }

    /// Registers that hold `matrix` [rows, columns], column by column as the tables count.
    fn registers(&self, matrix: &[u16]) -> Vec<u16> {
        self.elements().map(|element| matrix[element]).collect()
    }
}

#[derive(Deserialize)]
struct Product {
    a: Option<Fragment>,
    b: Option<Fragment>,
    d: Fragment,
}

#[derive(Deserialize)]
struct Movement {
    row: Fragment,
    register: Fragment,
}

/// A tile in shared memory and the descriptors of its slices of 16 of k.
#[derive(Deserialize)]
struct Operand {
    rows: usize,
    k: usize,
    mn_major: usize,
    swizzle: u64,
    leading: u64,
    stride: u64,
    starts: Vec<u64>,
    chunks: Vec<usize>,
}

impl Operand {
    /// The bytes of the tile with `element(row, k)` in it, NaN elsewhere.
    fn image(&self, element: impl Fn(usize, usize) -> u16) -> Vec<u16> {
        let mut image = vec![0xffff; 16384];
        let others = if self.mn_major == 1 { self.k } else { self.rows };
        for (i, chunk) in self.chunks.iter().enumerate() {
            for j in 0..8 {
                let (along, other) = (i / others * 8 + j, i % others);
                let (row, k) = if self.mn_major == 1 { (along, other) } else { (other, along) };
                image[chunk * 8 + j] = element(row, k);
            }
        }
        image
    }

    fn descriptor(&self, slice: usize) -> u64 {
        self.starts[slice] | self.leading << 16 | self.stride << 32 | self.swizzle << 62
    }
}

/// As in kernels/simt/probes_layouts.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct WgmmaParams {
    a: DevicePtr,
    b: DevicePtr,
    out: DevicePtr,
    a_desc: u64,
    b_desc: u64,
}

#[test]
fn ldmatrix_moves_every_element_where_cute_says() {
    // Row i of 16 bytes holds the numbers 8 i ..; 0 is nowhere else.
    let x: Vec<u16> = (1..=256).collect();
    for (c, name) in
        ["ldmatrix_x4", "ldmatrix_x4_trans", "ldmatrix_x2", "ldmatrix_x2_trans"].into_iter().enumerate()
    {
        let Movement { row, register } = golden(name);
        let mut simt = Simt::new();
        let (x, out) = (simt.put(cast_slice(&x)), simt.alloc(512));
        let params = PointwiseParams { x, out, c: c as i32, ..Default::default() };
        simt.launch("probe_ldmatrix", [1; 3], 32, 0, bytes_of(&params), Mode::CHECKED).expect("it is right");
        let got = simt.get(out);
        let got: &[u16] = cast_slice(&got);
        // Which number the table's element is: lanes that point to the same row agree.
        let mut number = vec![0; 256];
        for (lane, &at) in row.thread.iter().enumerate() {
            let pointed = if name.contains("x2") { lane % 16 } else { lane };
            row.value.iter().for_each(|value| number[at + value] = pointed * 8 + value + 1);
        }
        for (lane, at) in register.thread.iter().enumerate() {
            for (i, value) in register.value.iter().enumerate() {
                assert_eq!(
                    usize::from(got[lane * 8 + i]),
                    number[at + value],
                    "{name} lane {lane} value {i}"
                );
            }
        }
    }
}

#[test]
fn stmatrix_moves_every_element_back_to_where_ldmatrix_takes_it_from() {
    // CuTe's tables of stmatrix are these with their sides exchanged.
    let Movement { row, register } = golden("ldmatrix_x4");
    let x: Vec<u16> = (1..=256).collect();
    for mode in [Mode::FAST, Mode::CHECKED] {
        let mut simt = Simt::new();
        let (x, out) = (simt.put(cast_slice(&x)), simt.alloc(512));
        let params = PointwiseParams { x, out, ..Default::default() };
        let counts = simt.launch("probe_stmatrix", [1; 3], 32, 0, bytes_of(&params), mode);
        // 32 rows beside each other.
        assert_eq!(counts.expect("it is right").bank_conflicts, 0);
        let got = simt.get(out);
        let got: &[u16] = cast_slice(&got);
        let mut number = vec![0; 256];
        register.elements().enumerate().for_each(|(i, element)| number[element] = i + 1);
        for (i, element) in row.elements().enumerate() {
            assert_eq!(usize::from(got[i]), number[element], "row {} element {}", i / 8, i % 8);
        }
    }
}

#[test]
fn mma_multiplies_the_elements_that_cute_says() {
    type Round = fn(f32) -> u16;
    let types: [(&str, i32, Round); 2] =
        [("f16", 0, |x| f16::from_f32(x).to_bits()), ("bf16", 1, |x| bf16::from_f32(x).to_bits())];
    for (name, c, round) in types {
        let Product { a: Some(a), b: Some(b), d } = golden(&format!("mma_m16n8k16_{name}")) else {
            panic!("the table lacks an operand")
        };
        // D is 8 columns of a matrix whose elements are numbered: of A where B selects depths, of B where A does.
        let number = |i: usize| i as f32;
        for first in [0, 8] {
            let left: Vec<u16> = (0..256).map(|i| round(number(i))).collect(); // A [16, 16] at m + 16 k
            let one = |i: usize, k: usize| round(f32::from(u8::from(k == i + first)));
            let select: Vec<u16> = (0..128).map(|i| one(i % 8, i / 8)).collect(); // B [8, 16] at n + 8 k
            for (i, got) in run_mma(&a.registers(&left), &b.registers(&select), c).into_iter().enumerate() {
                let element = d.elements().nth(i).expect("as many");
                let (m, n) = (element % 16, element / 16);
                assert_eq!(got, number(m + 16 * (n + first)), "{name}: A of D ({m}, {n})");
            }
        }
        let right: Vec<u16> = (0..128).map(|i| round(number(i))).collect();
        let select: Vec<u16> = (0..256).map(|i| round(f32::from(u8::from(i % 16 == i / 16)))).collect();
        for (i, got) in run_mma(&a.registers(&select), &b.registers(&right), c).into_iter().enumerate() {
            let element = d.elements().nth(i).expect("as many");
            let (m, n) = (element % 16, element / 16);
            assert_eq!(got, number(n + 8 * m), "{name}: B of D ({m}, {n})");
        }
    }
}

fn run_mma(a: &[u16], b: &[u16], c: i32) -> Vec<f32> {
    let mut simt = Simt::new();
    let (x, y, out) = (simt.put(cast_slice(a)), simt.put(cast_slice(b)), simt.alloc(512));
    let params = PointwiseParams { x, y, out, c, ..Default::default() };
    simt.launch("probe_mma", [1; 3], 32, 0, bytes_of(&params), Mode::CHECKED).expect("it is right");
    cast_slice(&simt.get(out)).to_vec()
}

#[test]
fn wgmma_reads_operands_in_shared_memory_where_cute_puts_them() {
    let k_major = ["k_128", "k_64", "k_32", "k_none", "k_none_rows_last"];
    let mn_major = ["mn_128", "mn_64", "mn_32", "mn_none"];
    let wide = ["mn_128_rows_first", "mn_128_rows_last"];
    let pairs = |n: &'static str, a: &[&'static str], b: &[&'static str]| -> Vec<(String, String, String)> {
        let all = a.iter().flat_map(|a| b.iter().map(move |b| (a, b)));
        all.map(|(a, b)| (format!("probe_wgmma_{n}"), (*a).to_owned(), (*b).to_owned())).collect()
    };
    let cases = [
        pairs("n64_k_k_f16", &k_major, &k_major),
        pairs("n64_k_mn_f16", &k_major[..1], &mn_major),
        pairs("n64_mn_k_f16", &mn_major, &k_major[..1]),
        pairs("n64_mn_mn_f16", &mn_major[..1], &mn_major),
        pairs("n128_k_mn_f16", &k_major[..1], &wide),
    ];
    for (kernel, a_name, b_name) in cases.into_iter().flatten() {
        let (a, b): (Operand, Operand) = (golden(&a_name), golden(&b_name));
        let slices = a.starts.len().min(b.starts.len());
        for slice in 0..slices {
            // D = A B^T with A selecting depths numbers every element of B, and the other way round.
            let one =
                |row: usize, k: usize| f16::from_f32(f32::from(u8::from(row == k - slice * 16))).to_bits();
            let selects = |row: usize, k: usize| if k / 16 == slice { one(row, k) } else { 0xffff };
            let number = |row: usize, k: usize| (row * 16 + k % 16) as f32;
            let numbered = |row: usize, k: usize| {
                if k / 16 == slice { f16::from_f32(number(row, k)).to_bits() } else { 0xffff }
            };
            for of_b in [false, true] {
                let images = if of_b {
                    (a.image(selects), b.image(numbered))
                } else {
                    (a.image(numbered), b.image(selects))
                };
                let d = run_wgmma(
                    &kernel,
                    &images.0,
                    &images.1,
                    a.descriptor(slice),
                    b.descriptor(slice),
                    b.rows,
                );
                for (i, got) in d.into_iter().enumerate() {
                    let (m, n) = (i % 64, i / 64);
                    let (row, k) = if of_b { (n, m) } else { (m, n) };
                    let want = if k < 16 { number(row, k) } else { 0.0 };
                    assert_eq!(got, want, "{kernel} {a_name} {b_name} slice {slice}: D ({m}, {n})");
                }
            }
        }
    }
}

/// D [64, n], column by column.
fn run_wgmma(kernel: &str, a: &[u16], b: &[u16], a_desc: u64, b_desc: u64, n: usize) -> Vec<f32> {
    let mut simt = Simt::new();
    let (a, b, out) = (simt.put(cast_slice(a)), simt.put(cast_slice(b)), simt.alloc(64 * n * 4));
    let params = WgmmaParams { a, b, out, a_desc, b_desc };
    simt.launch(kernel, [1; 3], 128, 65536, bytes_of(&params), Mode::FAST).expect("it is right");
    let table: Product = golden(if kernel.contains("bf16") {
        "wgmma_m64n64k16_bf16"
    } else if n == 8 {
        "wgmma_m64n8k16_f16"
    } else if n == 64 {
        "wgmma_m64n64k16_f16"
    } else {
        "wgmma_m64n256k16_f16"
    });
    // A narrower product is the beginning of the widest.
    let d = Fragment { thread: table.d.thread, value: table.d.value[..n / 2].to_vec() };
    let mut matrix = vec![f32::NAN; 64 * n];
    for (element, &got) in d.elements().zip(cast_slice::<u8, f32>(&simt.get(out))) {
        matrix[element] = got;
    }
    matrix
}

#[test]
fn wgmma_spreads_every_width_over_its_registers_and_takes_a_from_them_as_cute_says() {
    let k_128: Operand = golden("k_128");
    for (n, kernel) in [(8, "probe_wgmma_n8_k_k_f16"), (256, "probe_wgmma_n256_k_k_f16")] {
        let a = k_128.image(|row, k| f16::from_f32(f32::from(u8::from(row == k))).to_bits());
        // 4096 elements in two parts, each exact in f16.
        for part in [|i: usize| i % 64, |i: usize| i / 64] {
            // Rows beyond the table's 64 follow in groups of 8, as its descriptor says.
            let group = |first: usize| {
                k_128.image(|row, k| f16::from_f32(part((first + row) * 16 + k % 16) as f32).to_bits())
            };
            let b: Vec<u16> = (0..256).step_by(8).flat_map(|first| group(first)[..512].to_vec()).collect();
            let d = run_wgmma(kernel, &a, &b, k_128.descriptor(0), k_128.descriptor(0), n);
            for (i, got) in d.into_iter().enumerate() {
                let (m, n) = (i % 64, i / 64);
                let want = if m < 16 { part(n * 16 + m) as f32 } else { 0.0 };
                assert_eq!(got, want, "{kernel}: D ({m}, {n})");
            }
        }
    }
    type Round = fn(f32) -> u16;
    let types: [(&str, &str, Round); 2] = [
        ("wgmma_m64n8k16_f16", "probe_wgmma_n64_registers_k_f16", |x| f16::from_f32(x).to_bits()),
        ("wgmma_m64n64k16_bf16", "probe_wgmma_n64_registers_k_bf16", |x| bf16::from_f32(x).to_bits()),
    ];
    for (table, kernel, round) in types {
        let Product { a: Some(a), .. } = golden(table) else { panic!("the table has registers of A") };
        // 1024 elements in two parts, each exact in bf16.
        for part in [|i: usize| i % 64, |i: usize| i / 64] {
            let left: Vec<u16> = (0..1024).map(|i| round(part(i) as f32)).collect();
            let b = k_128.image(|row, k| round(f32::from(u8::from(row == k))));
            let registers = a.registers(&left);
            let d = run_wgmma(kernel, &registers, &b, 0, k_128.descriptor(0), 64);
            for (i, got) in d.into_iter().enumerate() {
                let (m, n) = (i % 64, i / 64);
                let want = if n < 16 { part(m + 64 * n) as f32 } else { 0.0 };
                assert_eq!(got, want, "{kernel}: D ({m}, {n})");
            }
        }
    }
}

#[test]
fn wgmma_with_a_in_registers_reads_as_much_of_rows_of_n_as_it_needs() {
    let Product { a: Some(a), .. } = golden("wgmma_m64n8k16_f16") else {
        panic!("the table has registers of A")
    };
    let left: Vec<u16> =
        (0..1024).map(|i| f16::from_f32(f32::from(u8::from(i % 64 == i / 64))).to_bits()).collect();
    let registers = a.registers(&left);
    for (n, name) in [(40, "mn_128"), (40, "mn_64"), (80, "mn_128_rows_first"), (80, "mn_128_rows_last")] {
        let b: Operand = golden(name);
        for slice in 0..b.starts.len() {
            let number = |row: usize, k: usize| (row * 16 + k % 16) as f32;
            // What it does not need is no number.
            let image = b.image(|row, k| match row < n && k / 16 == slice {
                true => f16::from_f32(number(row, k)).to_bits(),
                false => 0xffff,
            });
            let kernel = format!("probe_wgmma_n{n}_registers_mn_f16");
            let d = run_wgmma(&kernel, &registers, &image, 0, b.descriptor(slice), n);
            for (i, got) in d.into_iter().enumerate() {
                let (m, row) = (i % 64, i / 64);
                let want = if m < 16 { number(row, m) } else { 0.0 };
                assert_eq!(got, want, "{kernel} {name} slice {slice}: D ({m}, {row})");
            }
        }
    }
}
