from crop_assets.automation.years import NextStep, YearState, next_step

HALF = YearState("map", {"14SMG": "a"}, ("14SNG",))
WHOLE = YearState("map", {"14SMG": "a", "14SNG": "b"}, ())


def test_tiles_are_requested_once_per_tile_map() -> None:
    assert next_step(HALF, "", "") == NextStep("tiles", "1 of 2 tiles must be made")
    assert next_step(HALF, "another map", "").what == "tiles"
    assert next_step(HALF, "map", "") == NextStep("nothing", "waiting for 1 of 2 tiles (14SNG)")


def test_of_many_waiting_tiles_only_some_are_listed() -> None:
    tiles = tuple(f"14S{letter}G" for letter in "ABCDEF")
    assert next_step(YearState("map", {}, tiles), "map", "").why == (
        "waiting for 6 of 6 tiles (14SAG, 14SBG, 14SCG, 14SDG, 14SEG, …)"
    )


def test_the_dataset_is_requested_once_per_state_of_its_tiles() -> None:
    assert next_step(WHOLE, "map", "") == NextStep("dataset", "all 2 tiles are done")
    # tiles that a person made need no backfill
    assert next_step(WHOLE, "", "").what == "dataset"
    assert next_step(WHOLE, "map", WHOLE.digest).what == "nothing"
    again = YearState("map", {"14SMG": "a", "14SNG": "b2"}, ())
    assert next_step(again, "map", WHOLE.digest).what == "dataset"
    assert YearState("map", {"14SNG": "b", "14SMG": "a"}, ()).digest == WHOLE.digest


def test_a_year_without_any_tile_is_left_alone() -> None:
    assert next_step(YearState("map", {}, ()), "", "").what == "nothing"
