import subprocess
import sys

import pytest

from attnguide.models.names import (
    DTYPE_NAMES,
    SCHEDULER_CHOICES,
    SCHEDULERS,
    check_device,
    check_dtype,
    check_scheduler,
    nearest,
    scheduler_choice,
)


def test_known_names_come_back() -> None:
    assert [check_scheduler(name) for name in SCHEDULER_CHOICES] == list(SCHEDULER_CHOICES)
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


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("DPM++ 2M Karras", "dpmpp_2m_karras"),
        ("DPM++ 2M SDE Karras", "dpmpp_2m_sde_karras"),
        ("DPM++ 3M SDE Exponential", "dpmpp_3m_sde_exponential"),
        ("dpm++ sde", "dpmpp_sde"),
        ("DPM++ 2S", "dpm_single"),
        ("Euler a", "euler_ancestral"),
        ("DPM2 a Karras", "kdpm2_ancestral_karras"),
        ("LMS Karras", "lms_karras"),
        ("PLMS", "plms"),
        ("UniPC", "unipc"),
        ("Euler SGM Uniform", "euler_trailing"),
        ("euler_k", "euler_karras"),
        ("EulerDiscreteScheduler", "euler"),
        ("PNDMScheduler", "pndm"),
        ("DPMSolverMultistepScheduler", "dpmpp_2m"),
    ],
)
def test_schedulers_as_web_uis_and_diffusers_call_them(typed: str, name: str) -> None:
    assert check_scheduler(typed) == name


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("euler_ancestral_karras", "'euler_ancestral' has no karras noise levels"),
        ("ddim_beta", "'ddim' has no beta noise levels"),
        ("edm_euler", "cannot be used: it is for networks trained with EDM's scaling"),
        ("DPM++ 2S a Karras", "cannot be used: diffusers has no such scheduler; the nearest are 'dpmpp_2s'"),
        ("dpm_adaptive", "cannot be used: its number of steps is not known in advance"),
    ],
)
def test_schedulers_that_cannot_be_had_say_why(typed: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_scheduler(typed)


def test_a_scheduler_s_name_says_which_noise_levels() -> None:
    assert scheduler_choice("euler").options == {
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
    }
    assert scheduler_choice("heun_beta").options["use_beta_sigmas"] is True
    assert scheduler_choice("dpmpp_2m_sde_trailing").options["timestep_spacing"] == "trailing"


@pytest.mark.parametrize(
    ("typed", "name"),
    [("float32", "fp32"), ("torch.float16", "fp16"), ("half", "fp16"), ("bfloat16", "bf16"), ("FP16", "fp16")],
)
def test_precisions_as_torch_calls_them(typed: str, name: str) -> None:
    assert check_dtype(typed) == name


def test_nearest_is_silent_about_strangers() -> None:
    assert nearest("qqqq", SCHEDULERS) == ""


def test_nearest_overlooks_capitals() -> None:
    assert nearest("INJECT7", ["inject1", "inject7"]) == " (did you mean 'inject7'?)"


def test_names_need_no_torch() -> None:
    code = "import sys, attnguide.models.names; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
