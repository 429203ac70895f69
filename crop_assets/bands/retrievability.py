"""Checks whether content is available by its CID, without downloading it."""

from collections.abc import Callable

import pandas as pd

from crop_assets.progress import Progress
from resources.errors import ResourceError
from resources.ipfs.cid import Cid
from resources.stop import StoppablePool


def check_cids(
    files: pd.DataFrame,
    ask: Callable[[Cid], str],
    at_once: int,
    log: Callable[[str], None],
) -> pd.DataFrame:
    """The rows of `files` with available, source and problem: the result of requesting the first block of each CID.

    `files` has cid ("" if unknown) and problem, the reason why it is unknown. `ask` returns the name of a source that
    has the block, or raises ResourceError. At most `at_once` CIDs are checked concurrently. A CID that is not available
    gives a row, not an error.
    """
    progress = Progress(log, len(files), "CIDs checked")
    answers = []
    with StoppablePool(at_once) as pool:
        asked = pool.map(lambda cid: _ask(cid, ask), files["cid"])
        for (source, problem), known in zip(asked, files["problem"], strict=True):
            answers.append(
                {
                    "available": bool(source),
                    "source": source,
                    "problem": problem or (not source and known) or "",
                }
            )
            progress(len(answers))
    frame = pd.DataFrame(answers, columns=["available", "source", "problem"], index=files.index)
    return files.drop(columns="problem").join(frame)


def _ask(cid: str, ask: Callable[[Cid], str]) -> tuple[str, str]:
    if not cid:
        return "", ""
    try:
        root = Cid.parse(cid)
        # an identity CID contains its content
        return ("the CID itself" if root.hash_name == "identity" else ask(root)), ""
    except ResourceError as error:
        return "", str(error)
