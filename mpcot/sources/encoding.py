"""Checks that a text file is UTF-8, before any work starts."""

from __future__ import annotations

import codecs
from pathlib import Path

import pyarrow.fs as pafs

from cluster.base.errors import UserError
from mpcot.sources.places import CONVERT_SPREADSHEET

BLOCK_BYTES = 1 << 22
_SPREADSHEET = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # how .xlsx, .ods and zip archives, and how .xls begin


def check_encoding(filesystem: pafs.FileSystem, path: str, field: str) -> bool:
    """Decode a text file block by block, and return whether it is blank.

    Raises:
        UserError: names the first wrong byte, or says what the file is instead.
    """
    decoder, offset, blank = codecs.getincrementaldecoder("utf-8")(), 0, True
    with filesystem.open_input_stream(path) as stream:
        while block := stream.read(BLOCK_BYTES):
            pending = len(decoder.getstate()[0])
            if offset == 0 and block.startswith(_SPREADSHEET):
                raise UserError(f"{field}: {path} is a spreadsheet or an archive. {CONVERT_SPREADSHEET}")
            try:
                blank = not decoder.decode(block).strip() and blank
            except UnicodeDecodeError as error:
                place = offset - pending + error.start
                raise UserError(_encoding_message(path, place, block, field)) from error
            offset += len(block)
    if decoder.getstate()[0]:
        raise UserError(_encoding_message(path, offset, b"", field))
    return blank


def _encoding_message(path: str, offset: int, block: bytes, field: str) -> str:
    wide = offset == 0 and block[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    guess = "UTF-16" if wide else "LATIN1"
    name = Path(path).name
    return (
        f"{field}: {path} is not UTF-8: byte {offset} cannot be decoded"
        f"{' (it looks like UTF-16)' if wide else ''}. Convert it, for instance: "
        f"iconv -f {guess} -t UTF-8 {name} > new-{name}"
    )
