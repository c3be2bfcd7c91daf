import torch

from attnguide.guidance.clusters import k_means, subject_masks


def test_k_means_finds_separate_heaps_always_the_same() -> None:
    heaps = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], dtype=torch.float64)
    noise = torch.randn(3, 20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    points = (heaps[:, None] + 0.1 * noise).flatten(0, 1)
    centres = k_means(points, 3)
    torch.testing.assert_close(torch.cdist(heaps, centres).amin(1), torch.zeros(3, dtype=torch.float64), atol=0.1, rtol=0)
    assert torch.equal(centres, k_means(points, 3))
    assert torch.equal(k_means(points, 3, centres), centres)
    assert len(k_means(points[:2], 5)) == 2


def test_clusters_go_to_the_subject_they_overlap_most() -> None:
    """Six cells in three clusters: one for each subject, one for nobody."""
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    words = torch.tensor([[1.0, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0]], dtype=torch.float64)
    boxes = torch.tensor([[True, True, False, False, True, False], [False, False, True, True, False, True]])
    masks = subject_masks(labels, words, boxes, boxes, 0.2, 3)
    assert masks.int().tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0]]


def test_a_subject_left_with_nothing_gets_its_box_back() -> None:
    labels = torch.zeros(4, dtype=torch.long)
    words = torch.tensor([[1.0, 1, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)
    boxes = torch.tensor([[True, True, False, False], [False, False, False, True]])
    masks = subject_masks(labels, words, boxes, torch.ones(2, 4, dtype=torch.bool), 0.2, 1)
    assert masks.int().tolist() == [[1, 1, 1, 0], [0, 0, 0, 1]]
