"""Lists the datasets and years in a store, and explains what to do if one is missing."""

from pathlib import Path

from crop_assets.errors import InputError
from crop_assets.layout import Layout, parse_year
from crop_assets.suggest import did_you_mean
from resources.store import DatasetStore

_FOLDER = "training_datasets"


def dataset_years(store: DatasetStore, dataset: str) -> list[int]:
    """The years of a dataset in the store, in order."""
    return sorted(filter(None, map(parse_year, _names(store, f"{_FOLDER}/{dataset}"))))


def require_years(store: DatasetStore, dataset: str, year: int | None) -> list[int]:
    """The years of a dataset in the store, or the one year. Raises InputError if there is none."""
    found = dataset_years(store, dataset)
    years = [year] if year in found else [] if year else found
    if not years:
        raise not_stored(store, f"dataset {dataset}{f' of {year}' if year else ''}", dataset)
    return years


def stored_datasets(store: DatasetStore) -> dict[str, list[int]]:
    """The years of each dataset in the store, in order of the names."""
    found = {name: dataset_years(store, name) for name in sorted(_names(store, _FOLDER))}
    return {name: years for name, years in found.items() if years}


def years_with(store: DatasetStore, dataset: str, asset: str, year: int | None) -> list[int]:
    """The years of a dataset, or the one year, that have the table of a per-year asset.

    Raises InputError if there is none.
    """
    years = dataset_years(store, dataset) if year is None else [year]
    found = [one for one in years if store.exists(Layout(dataset, one).table(asset))]
    if not found:
        of = f"the dataset {dataset}{f' of {year}' if year else ''}"
        launch = f"launch labels_job for {year or 'a year'} first"
        raise InputError(f"{not_stored(store, f'{asset} of {of}', dataset)}; or {launch}")
    return found


def not_stored(store: DatasetStore, what: str, dataset: str) -> InputError:
    """The error if `what` of a dataset is not in the store; it lists what is there, and the options to use."""
    head = f"the store {store.root} has no {what}"
    found = stored_datasets(store)
    if not found:
        elsewhere = _elsewhere(store)
        advice = f"--data {elsewhere} has datasets" if elsewhere else "give --data or set CROP_ASSETS_DATA"
        return InputError(f"{head}, and no other dataset either; {advice}")
    available = "; ".join(f"{name} of {', '.join(map(str, years))}" for name, years in found.items())
    if dataset not in found:
        only = f" {next(iter(found))}" if len(found) == 1 else ""
        return InputError(
            f"{head}{did_you_mean(dataset, found)}. It has: {available}. Give --dataset{only}, or --data"
        )
    return InputError(f"{head}. It has: {available}. Give --year, --dataset or --data")


def _names(store: DatasetStore, folder: str) -> list[str]:
    return [name.rsplit("/", 1)[-1] for name in store.names(folder)]


def _elsewhere(store: DatasetStore) -> str:
    """A folder near a local store's root that has datasets (`data` in it, or one of the two above it); "" if none."""
    if not store.is_local:
        return ""
    root = Path(store.path(_FOLDER).path).parent
    near = [root / "data", *root.absolute().parents[:2]]
    return next((str(folder) for folder in near if (folder / _FOLDER).is_dir()), "")
