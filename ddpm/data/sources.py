"""Sources: what shards are made from. A new kind is a file with a Source, and a line in `KINDS`.

    digits            scikit-learn's 1,797 handwritten digits of 8x8, v of 16 as round(255 v / 16)
    FILE.npz          `images` (N, H, W[, C]) uint8 or float in [0, 1]; LABEL_KEY: whole numbers
    *idx3-ubyte[.gz]  IDX images, their labels beside them; a folder of IDX: its training pair
    FOLDER            png, jpg, jpeg, webp, bmp; sub-folders are classes, numbered by name; a flat
                      one has no labels

Opening a source looks at names, headers and sizes only, loading it reads and checks the pixels;
both report all problems at once. Pixels are (H, W, C), uint8, or float32 in [0, 1].
"""

import os
from pathlib import Path

from ddpm.data.arrays import DigitsSource, IdxSource, NpzSource
from ddpm.data.folder import FolderSource
from ddpm.data.source import DIGITS, Source
from ddpm.errors import InputError

# In the order in which they are tried.
KINDS: tuple[type[Source], ...] = (DigitsSource, NpzSource, IdxSource, FolderSource)


def open_source(source: str | os.PathLike[str], label_key: str | None = "labels") -> Source:
    """The source at a path, or `digits`. Raises InputError with the problems that headers show."""
    path = Path(source)
    known = f"give {', '.join(kind.takes for kind in KINDS)}, or a folder of shards"
    if str(source) != DIGITS and not path.exists():
        raise InputError(f"{path} does not exist; {known}")
    for kind in KINDS:
        if (opened := kind.opened(str(source), label_key)) is not None:
            return opened
    raise InputError(f"{path} is no source of images; {known}")
