"""States the device, the driver and the versions that results belong to."""
import platform
import subprocess
import sys

import torch


def words(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=50)
        return (done.stdout + done.stderr).strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]}: {error}"


fields = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,clocks.sm,clocks.mem,power.limit,mig.mode.current"
print(words("nvidia-smi", f"--query-gpu={fields}", "--format=csv"))
print("python", platform.python_version(), platform.machine())
print("torch", torch.__version__, "CUDA", torch.version.cuda, "cuDNN", torch.backends.cudnn.version())
print("torch sees", torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device")
print(words(sys.argv[1], "--version"))
print(words(sys.argv[1], "doctor"))
