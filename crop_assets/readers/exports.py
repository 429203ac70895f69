"""Copies of a dataset in other forms: Parquet with pixels, and arrays that numpy can map into memory."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from crop_assets.errors import InputError
from resources.geodata import open_geotiff

CHIPS_PER_FILE = 256
"""Of a Parquet file, which then has about 300 MB: the size that Hugging Face's hub recommends, up to 500 MB."""


def parquet_schema(facts: pd.DataFrame) -> pa.Schema:
    """The columns of `facts`, then `image` and `mask`, the bytes of the GeoTIFF files."""
    known = pa.Schema.from_pandas(facts, preserve_index=False).remove_metadata()
    return known.append(pa.field("image", pa.binary())).append(pa.field("mask", pa.binary()))


def write_parquet(
    path: Path, facts: pd.DataFrame, files: Sequence[tuple[str, str]], read: Callable[[str], bytes]
) -> None:
    """Write chips with their pixels, one row group per 16 chips, so that few are in memory at once.

    `facts` has a row a chip and `files` its image and mask, which `read` returns the bytes of.
    """
    schema = parquet_schema(facts)
    # the pixels are compressed already
    with pq.ParquetWriter(path, schema, compression="none") as writer:
        for start in range(0, len(facts), 16):
            rows = facts.iloc[start : start + 16]
            pairs = [(read(image), read(mask)) for image, mask in files[start : start + 16]]
            columns = pa.Table.from_pandas(rows, preserve_index=False)
            for name, at in (("image", 0), ("mask", 1)):
                columns = columns.append_column(name, pa.array([pair[at] for pair in pairs], pa.binary()))
            writer.write_table(columns.cast(schema))


def write_array(path: Path, files: Sequence[str]) -> None:
    """Write the pixels of GeoTIFF files of 224 x 224 as one `.npy`, a file at a time: (files, bands, 224, 224), without
    the axis of bands if there is one.

    `files` are paths for GDAL; all have the type and bands of the first. There must be one.
    """
    with path.open("wb") as out:
        for number, file in enumerate(files):
            with open_geotiff(file) as raster:
                values = raster.read()
            if number == 0:
                first = np.squeeze(values, axis=0) if len(values) == 1 else values
                header = {
                    "descr": first.dtype.str,
                    "fortran_order": False,
                    "shape": (len(files), *first.shape),
                }
                np.lib.format.write_array_header_1_0(out, header)
            if (values.dtype, values.size) != (first.dtype, first.size):
                raise InputError(f"{Path(file).name} has other bands or types than the chips before")
            out.write(values.tobytes())
