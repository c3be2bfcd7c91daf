import subprocess
import sys

import pytest

from attnguide.models.names import DTYPE_NAMES, SCHEDULERS, check_device, check_dtype, check_scheduler, nearest


def test_known_names_come_back() -> None:
    assert [check_scheduler(name) for name in SCHEDULERS] == list(SCHEDULERS)
    assert [check_dtype(name) for name in DTYPE_NAMES] == list(DTYPE_NAMES)
    for name in ("cpu", "cuda", "cuda:0", "cuda:13", "mps"):
        assert check_device(name) == name


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU", "", "cpu:0"])
def test_unknown_devices(name: str) -> None:
    with pytest.raises(ValueError, match=f"Unknown device '{name}'; choose from cpu, cuda, cuda:N, mps"):
        check_device(name)


def test_unknown_names_say_what_exists() -> None:
    with pytest.raises(ValueError, match=r"Unknown scheduler 'dimm' \(did you mean 'ddim'\?\); choose from ddim, .*unipc"):
        check_scheduler("dimm")
    with pytest.raises(ValueError, match=r"Unknown dtype 'fp61' \(did you mean 'fp16'\?\); choose from fp32, fp16, bf16"):
        check_dtype("fp61")


def test_nearest_is_silent_about_strangers() -> None:
    assert nearest("qqqq", SCHEDULERS) == ""


def test_names_need_no_torch() -> None:
    code = "import sys, attnguide.models.names; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
