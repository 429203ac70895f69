"""Whether content can be had by its CID, without downloading it.

Belongs here: asking for many CIDs at once, within bounds. Does not: how a source is asked (`resources.ipfs`).
"""

from collections.abc import Callable

import pandas as pd

from crop_assets.progress import Progress
from resources.errors import ResourceError
from resources.ipfs.cid import Cid
from resources.stop import StoppablePool


def ask_cids(
    files: pd.DataFrame,
    ask: Callable[[Cid], str],
    at_once: int,
    log: Callable[[str], None],
) -> pd.DataFrame:
    """The rows of `files` with available, source and problem: what came of asking for the CID's first block.

    `files` has cid ("" where none is known) and problem, why there is none. `ask` gives the name of a source that has
    the block, or raises ResourceError. At most `at_once` CIDs are asked for at
    a time; what cannot be had is a row, not an error.
    """
    progress = Progress(log, len(files), "CIDs asked for")
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
        # an identity CID holds its content itself
        return ("the CID itself" if root.hash_name == "identity" else ask(root)), ""
    except ResourceError as error:
        return "", str(error)
