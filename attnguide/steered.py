"""``attnguide.steer``: methods inside the calls of a diffusers pipeline that the user makes."""

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
from attnguide.text.fields import MOST_SEED
from attnguide.text.parsing import as_whole, shown
from attnguide.types import Region

Regions = Mapping[str, Any] | Sequence[Region]


class SteeredRun(SteerRun):
    """The object that :func:`steer` yields: maps, cost and results of the newest call, which can be saved."""

    def save(self, folder: str | Path) -> Path:
        """Write the newest call as a run folder, with the same files as other runs.

        ``samples/``, ``maps/``, ``records.csv``, ``loss_trace.csv``, ``sheet.png``, ``report.html`` and ``config.yaml``.

        The recorded seed is that of the noise that methods drew. It is the pipeline's too only if the call took its ``latents``
        from :meth:`latents`.

        Args:
            folder: New folder, or one that holds no run.

        Returns:
            Path of ``report.html``.

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
    """Apply methods in every call of a diffusers pipeline inside the block.

    The pipeline runs its own loop: ControlNets, img2img, inpainting, adapters, callbacks and prompt weights keep working. Its
    latents equal those of :func:`attnguide.sample` if both can make the picture. The pipeline is restored when the block is
    left.

    Args:
        pipeline: A diffusers pipeline; unknown classes are refused by name.
        prompt: Prompt or prompts of the call; taken from the call when ``None``. Required if the pipeline is called with text
            states (``prompt_embeds``), since phrases are located in it.
        regions: Phrase -> place, or a list of regions, as for :func:`attnguide.sample`; or a list of these, one per prompt.
        groups: Words that belong together, the noun last.
        method: One method, or several that work together. When ``None``: ``forward_layout`` if a region has a place, else none.
        seed: Seed of the noise that methods draw; further pictures of a call have the following numbers. The pipeline draws its
            own noise from its ``generator``, or takes ``latents=run.latents()``.
        observer: Observer of the steps.
        maps: Whether to keep the mean map of every region's words. Reading maps changes the last bits of attention at sites
            that are edited as well.
        refresh_controlnet: Whether ControlNets see latents as guidance has moved them, at the cost of another evaluation.
        prompt_syntax: Syntax of ``prompt``; with ``weights`` the pipeline must be called with its states,
            ``pipeline(**attnguide.prompt_embeds(pipeline, prompt, negative_prompt))``.
        options: Options of the method, if a single method is given by its name.

    Yields:
        The run, which describes the newest call: ``maps``, ``cost``, ``results``, ``notes``, ``stopped``, ``save(folder)``.

    Raises:
        SteerError: If the pipeline or a method cannot be steered from inside, the call takes a path that is not supported, or
            the block is left without a call.
        ValueError: If a phrase is not in the prompt, or a place, option or name is invalid.

    Example::

        with steer(pipe, regions={"cat": (0, 0.3, 0.5, 1)}, method="forward_layout") as run:
            image = pipe("a cat and a dog", image=outline).images[0]
        run.maps["cat"], run.save("runs/park")
    """
    number = as_whole(seed)
    if number is None or not 0 <= number <= MOST_SEED:
        raise ValueError(f"seed must be a whole number from 0 to {MOST_SEED}; got {shown(seed)}.")
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
    """The prompts given to :func:`steer`, as a tuple; ``None`` if they come from the call.

    Raises:
        ValueError: If a prompt is not text.
    """
    if prompt is None or isinstance(prompt, str):
        return None if prompt is None else (prompt,)
    if not isinstance(prompt, list | tuple) or not prompt or not all(isinstance(one, str) for one in prompt):
        raise ValueError(f"prompt must be text, a list of texts, or None; got {shown(prompt)}.")
    return tuple(prompt)


def _several(regions: Any) -> Sequence[Any]:
    """A list of regions for each prompt, or a list of one that holds for all prompts."""
    single = not isinstance(regions, list | tuple) or not regions or isinstance(regions[0], Region)
    return [regions] if single else regions
