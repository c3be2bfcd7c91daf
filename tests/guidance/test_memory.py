import torch

from attnguide.guidance.memory import StepMemory
from tests.guidance.cases import at


def test_the_last_pass_of_the_previous_step() -> None:
    memory = StepMemory()
    maps = [torch.full((1,), float(number)) for number in range(6)]
    first = [memory.recall([0], at(3), [maps[number]])[0] for number in (0, 1)]
    assert [(found.previous, found.passes) for found in first] == [(None, 1), (None, 2)]
    second = [memory.recall([0], at(7), [maps[number]])[0] for number in (2, 3)]
    assert [(found.previous.item(), found.passes) for found in second if found.previous is not None] == [(1, 1), (1, 2)]
    (third,) = memory.recall([0], at(8), [maps[4]])
    assert third.previous is not None and third.previous.item() == 3


def test_rows_remember_for_themselves() -> None:
    memory = StepMemory()
    memory.recall([0, 2], at(0), [torch.tensor(10.0), torch.tensor(12.0)])
    memory.recall([2], at(0), [torch.tensor(13.0)])
    found = memory.recall([2, 1, 0], at(1), [torch.zeros(())] * 3)
    assert [None if each.previous is None else each.previous.item() for each in found] == [13, None, 10]


def test_nothing_is_kept_with_its_graph_or_beyond_the_start() -> None:
    memory = StepMemory()
    memory.recall([0], at(0), [torch.ones(2, requires_grad=True) * 2])
    (found,) = memory.recall([0], at(1), [torch.zeros(2)])
    assert found.previous is not None and not found.previous.requires_grad
    memory.clear()
    assert memory.recall([0], at(2), [torch.zeros(2)])[0].previous is None
