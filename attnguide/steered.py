"""Methods inside a pipeline of one's own: ``with attnguide.steer(pipeline, ...)``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attnguide.api import Method, groups_of, methods_of, regions_of
from attnguide.engine.observer import Observer
from attnguide.sampling.arguments import check_observer
from attnguide.steering.context import entered_once, steer_calls
from attnguide.steering.request import Request
from attnguide.steering.run import SteerRun
from attnguide.text.parsing import as_whole, shown
from attnguide.types import Region

Regions = Mapping[str, Any] | Sequence[Region]


class SteeredRun(SteerRun):
    """What the user of :func:`steer` holds."""

    def save(self, folder: str | Path) -> Path:
        """Write the newest call as a run folder, with the files of any other run.

        ``samples/``, ``maps/``, ``records.csv``, ``loss_trace.csv``, ``sheet.png``, ``report.html`` and ``config.yaml``.

        The seed on record is that of the noise that methods drew; the pipeline's own noise has it where its ``latents`` were
        those of :meth:`latents`.

        Args:
            folder: New, or without a run.

        Returns:
            The report.

        Raises:
            ValueError: If no call has ended, or the folder holds a run.
        """
        from attnguide.steered_folder import save_run

        return save_run(self, folder)


@entered_once
@contextmanager
def steer(
    pipeline: Any,
    prompt: str | Sequence[str] | None = None,
    *,
    regions: Regions | Sequence[Regions] = (),
    groups: Sequence[str | Sequence[str]] = (),
    method: Method | Sequence[Method] | None = None,
    seed: int = 0,
    observer: Observer | None = None,
    maps: bool = True,
    refresh_controlnet: bool = True,
    prompt_syntax: str = "plain",
    **options: Any,
) -> Iterator[SteeredRun]:
    """Methods in every call that a diffusers pipeline of yours makes inside the block.

    The pipeline itself runs: ControlNets, pictures it begins at, masks, adapters, callbacks and weights of words keep working.
    Its latents are those of :func:`attnguide.sample` where both can make the picture. Everything is as before when the block
    is left.

    Args:
        pipeline: Of diffusers; classes that are not known are refused by name.
        prompt: What the pipeline will be called with, one or several; taken from the call when ``None``. It must be named
            where the pipeline is given text states (``prompt_embeds``), for words to be found in it.
        regions: Phrase -> place, or a list of regions, as for :func:`attnguide.sample`; or a list of these, one a prompt.
        groups: Words that belong together, the noun last.
        method: One, or several that work together; ``mask_guidance`` where a region has a place and nothing is said.
        seed: Of the noise that methods draw; the next pictures of a call have the next numbers. The pipeline draws its own from
            its ``generator``, or takes ``latents=run.latents()``.
        observer: Told of everything.
        maps: Keep the mean map of every region's words. Attention that is edited where it is read is rounded otherwise in its
            last bits.
        refresh_controlnet: Let ControlNets see latents as guidance has moved them, for an evaluation more of theirs.
        prompt_syntax: How the prompts that are named here are read; with ``weights`` the pipeline is given their states,
            ``pipeline(**attnguide.prompt_embeds(pipeline, prompt, negative_prompt))``.
        options: Of the method, if it is given by name and alone.

    Yields:
        What is known of the newest call: ``maps``, ``cost``, ``results``, ``notes``, ``stopped``, ``save(folder)``.

    Raises:
        SteerError: If the pipeline or a method cannot be steered from inside, the pipeline does what cannot be followed, or
            the block is left without a call.
        ValueError: If a phrase is not in the prompt, or a place, option or name is wrong.

    Example::

        with steer(pipe, regions={"cat": (0, 0.3, 0.5, 1)}, method="forward_layout") as run:
            image = pipe("a cat and a dog", image=outline).images[0]
        run.maps["cat"], run.save("runs/park")
    """
    number = as_whole(seed)
    if number is None:
        raise ValueError(f"seed must be a whole number; got {shown(seed)}.")
    for name, switch in (("maps", maps), ("refresh_controlnet", refresh_controlnet)):
        if not isinstance(switch, bool):
            raise ValueError(f"{name} must be True or False; got {shown(switch)}.")
    if observer is not None:
        check_observer(observer)
    places = tuple(regions_of(one) for one in _several(regions))
    request = Request(
        prompts=_prompts(prompt),
        regions=places,
        groups=groups_of(groups),
        methods=methods_of(method, options, [region for several in places for region in several]),
        seed=number,
        observer=observer,
        maps=maps,
        refresh_controlnet=refresh_controlnet,
        prompt_syntax=prompt_syntax,
    )
    run = SteeredRun()
    with steer_calls(pipeline, request, run):
        yield run


def _prompts(prompt: Any) -> tuple[str, ...] | None:
    """The announced prompts.

    Raises:
        ValueError: If they are no texts.
    """
    if prompt is None or isinstance(prompt, str):
        return None if prompt is None else (prompt,)
    if not isinstance(prompt, list | tuple) or not prompt or not all(isinstance(one, str) for one in prompt):
        raise ValueError(f"prompt must be text, a list of texts, or None; got {shown(prompt)}.")
    return tuple(prompt)


def _several(regions: Any) -> Sequence[Any]:
    """Regions of each prompt, or those of all."""
    single = not isinstance(regions, list | tuple) or not regions or isinstance(regions[0], Region)
    return [regions] if single else regions
