"""Files on disk ↔ `Adapter`. One file a format; `FORMATS` has what the writer needs of each."""

from lego.formats.base import Format
from lego.formats.diffusers import Diffusers
from lego.formats.kohya import Kohya
from lego.formats.peft import Peft

FORMATS: dict[str, type[Format]] = {"peft": Peft, "diffusers": Diffusers, "kohya": Kohya}

__all__ = ["FORMATS", "Format"]
