import numpy as np
import pytest
import shapely
from numpy.typing import NDArray

from crop_assets.errors import InputError
from crop_assets.polygons import MAX_CROSSINGS, MAX_VERTICES, join, make_valid


def scribble(vertices: int, seed: int = 1) -> shapely.Polygon:
    """A polygon of random vertices, whose outline crosses itself about a tenth of their square times."""
    return shapely.Polygon(np.random.default_rng(seed).random((vertices, 2)))


def array(*shapes: shapely.Geometry) -> NDArray[np.object_]:
    return np.array(shapes, dtype=object)


def comb(teeth: int, turned: bool) -> shapely.Polygon:
    """A valid polygon of parallel strips; two that are turned cross in each pair of strips."""
    at = np.arange(teeth)
    strips = shapely.box(at, 0, at + 0.5, teeth), shapely.box(0, -1, teeth, 0.1)
    shape = shapely.union_all([*strips[0], strips[1]])
    return shapely.transform(shape, lambda points: points[:, ::-1]) if turned else shape


def test_what_people_draw_is_repaired_as_shapely_does() -> None:
    bow_tie = shapely.Polygon([(0, 0), (1, 1), (1, 0), (0, 1)])
    twice = shapely.Polygon([(0, 0), (4, 0), (4, 4), (0, 4), (0, 0), (4, 0), (4, 4), (0, 4)])
    hole_outside = shapely.Polygon([(0, 0), (1, 0), (1, 1)], [[(5, 5), (6, 5), (6, 6)]])
    nested = shapely.MultiPolygon([shapely.box(0, 0, 4, 4), shapely.box(1, 1, 2, 2)])
    square = shapely.box(0, 0, 1, 1)
    shapes = array(bow_tie, square, twice, hole_outside, nested, scribble(60))
    repaired = make_valid(shapes)
    assert shapely.is_valid(repaired).all()
    assert shapely.equals_exact(repaired, shapely.make_valid(shapes)).all()
    assert repaired[1] is square
    assert shapes[0] is bow_tie
    assert len(make_valid(array())) == 0


@pytest.mark.parametrize(
    "shape",
    [
        scribble(300),
        scribble(20_000),
        shapely.MultiPolygon([scribble(150, seed) for seed in range(20)]),
        shapely.Polygon(
            [(x, y) for x in range(1000) for y in (0, 1)][: 2 * 900] + [(0, 0.5), (900, 0.5)] * 20
        ),
        shapely.Polygon([(0, 0), (1, 0)] * 3000 + [(0, 1)]),
        shapely.Polygon(scribble(80).exterior, [scribble(80, seed).exterior for seed in range(2, 30)]),
    ],
    ids=["vertices", "many vertices", "parts", "zigzag", "the same edge", "holes"],
)
def test_an_outline_that_crosses_itself_without_end_is_refused(shape: shapely.Geometry) -> None:
    with pytest.raises(InputError, match="outlines cross themselves more than 1,000 times"):
        make_valid(array(shape))
    # of many that each stay below the bound as well
    assert make_valid(array(scribble(90))) is not None
    with pytest.raises(InputError, match="outlines cross"):
        make_valid(array(*(scribble(60, seed) for seed in range(30))))


def test_vertices_are_bounded() -> None:
    angles = np.linspace(0, 2 * np.pi, MAX_VERTICES + 1)
    circle = shapely.Polygon(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    with pytest.raises(InputError, match=r"4,000,00\d vertices are more than 2,000,000"):
        make_valid(array(circle, circle))
    assert MAX_CROSSINGS == 1000


def test_polygons_that_cross_one_another_without_end_are_not_joined() -> None:
    few = array(comb(20, False), comb(20, True))
    assert shapely.equals(join(few), shapely.union_all(few))
    assert join(array()).is_empty
    with pytest.raises(InputError, match="outlines cross one another more than 20,000 times"):
        join(array(comb(400, False), comb(400, True)))
    triangles = [shapely.Polygon(np.random.default_rng(seed).random((3, 2))) for seed in range(1000)]
    with pytest.raises(InputError, match="outlines cross one another"):
        join(array(*triangles))


def star(spokes: int) -> shapely.Polygon:
    """A polygon whose outline crosses its middle with each of its spokes."""
    angles = np.arange(spokes) * (np.pi + 1.0)
    return shapely.Polygon(np.stack([np.cos(angles), np.sin(angles)], axis=1))


def slanted(edges: int, closing: list[tuple[float, float]]) -> shapely.Polygon:
    """A zigzag of long edges that do not cross, while the bounds of each meet those of all others."""
    at = np.arange(edges) / edges
    points = np.stack(
        [at + np.where(np.arange(edges) % 2, 100, 0), np.where(np.arange(edges) % 2, 100, 0) - at], axis=1
    )
    return shapely.Polygon([*points.tolist(), *closing])


@pytest.mark.parametrize("spokes", [3000, 40_000])
def test_a_star_is_refused_before_all_of_it_was_looked_at(
    spokes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[int] = []
    intersects = shapely.intersects

    def counted(one: NDArray[np.object_], other: NDArray[np.object_]) -> NDArray[np.bool_]:
        looked_at.append(len(one))
        found: NDArray[np.bool_] = intersects(one, other)
        return found

    monkeypatch.setattr(shapely, "intersects", counted)
    with pytest.raises(InputError, match="outlines cross themselves more than 1,000 times"):
        make_valid(array(star(spokes)))
    assert 0 < sum(looked_at) <= 100_000


def test_long_edges_side_by_side_are_refused_before_each_pair_is_looked_at() -> None:
    crossing = [(200.0, 0.0), (-200.0, 50.0), (-200.0, 0.0), (200.0, 50.0), (0.0, 300.0)]
    assert not slanted(100, crossing).is_valid
    assert make_valid(array(slanted(100, crossing)))[0].is_valid
    with pytest.raises(InputError, match="too many long edges side by side"):
        make_valid(array(slanted(20_000, crossing)))
    with pytest.raises(InputError, match="too many long edges side by side"):
        join(array(slanted(20_000, []), shapely.box(500, 0, 501, 1)))
