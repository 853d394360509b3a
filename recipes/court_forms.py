"""Real court forms, filled with made-up answers, every word with its place and its FUNSD tag.

A form is filled as on a screen: PDFium types text into its fields and draws it. What was typed
is an answer; form_tags.py finds questions and headers among the printed words. Places are in
points, from the lower left corner."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pypdfium2 as pdfium
import pypdfium2.raw as raw
import torch
from form_tags import Box, Field, Tagged, Word, tag
from made_up import Person
from torch import Tensor

from flor_plugins.errors import MissingDependency

# both MIT; West Virginia's courts and legal aid
SOURCES = (
    "docassemble.LAWVFamilyLaw",
    "docassemble.LAWVRelease",
)
FEWEST_FIELDS = 3  # a page with fewer is running text
BLANK = 0.15  # of the fields stay empty
BOLD = 600  # a font's weight from which it is bold, as in CSS
# rules that are drawn with underscores, and PDFium's marks for hyphens at a line's end
BREAKS = "_\ufffe\u00ad"


@dataclass(frozen=True)
class Page:
    """A filled page.

    words: in reading order. picture: (3, pixels, pixels) uint8, squeezed to a square.
    """

    form: str
    number: int
    size: tuple[float, float]
    words: list[Tagged]
    picture: Tensor


@dataclass(frozen=True)
class Letter:
    """A character on a page; what ends a word has no box."""

    text: str
    box: Box | None
    size: float = 0.0
    is_bold: bool = False


def list_forms() -> list[Path]:
    """The PDF files of the packages, by package and name. Nothing of the packages is imported."""
    return [
        Path(str(one.locate()))
        for source in SOURCES
        for one in sorted(find_source(source).files or [])
        if one.suffix == ".pdf"
    ]


def find_source(name: str) -> Distribution:
    try:
        return distribution(name)
    except PackageNotFoundError as error:
        raise MissingDependency(
            f"the forms of recipes/layoutlmv3.yaml come with the package {name!r}, which is "
            f"not installed: "
            f"pip install 'flor-plugins[recipes]'"
        ) from error


def fill(path: Path, *, filling: int, pixels: int) -> Iterator[Page]:
    """The form's pages that have fields. filling: another number, another person's answers."""
    document = pdfium.PdfDocument(path)
    document.init_forms()
    person = Person(f"{path.stem}/{filling}", blank=BLANK)
    try:
        for number in range(len(document)):
            fields = find_fields(document, number)
            if len(fields) >= FEWEST_FIELDS:
                printed = read(document, number)
                type_in(
                    document,
                    number,
                    [(one, person.answer(one.name, one.box.width)) for one in fields],
                )
                words = tag(
                    spell(printed), spell(added(printed, read(document, number)), fields), fields
                )
                size, picture = draw(document, number, pixels)
                yield Page(path.stem, number, size, words, picture)
    finally:
        document.close()


def find_fields(document: pdfium.PdfDocument, number: int) -> list[Field]:
    """The text fields of a page, in the order of the file."""
    page, found = document[number], []
    for index in range(raw.FPDFPage_GetAnnotCount(page)):
        mark = raw.FPDFPage_GetAnnot(page, index)
        if raw.FPDFAnnot_GetFormFieldType(document.formenv, mark) == raw.FPDF_FORMFIELD_TEXTFIELD:
            found.append(Field(index, field_name(document, mark), field_box(mark)))
        raw.FPDFPage_CloseAnnot(mark)
    page.close()
    return found


def field_box(mark: raw.FPDF_ANNOTATION) -> Box:
    edges = raw.FS_RECTF()
    raw.FPDFAnnot_GetRect(mark, edges)
    low, high = sorted((edges.bottom, edges.top))  # some forms name them the wrong way round
    return Box(edges.left, low, edges.right, high)


def field_name(document: pdfium.PdfDocument, mark: raw.FPDF_ANNOTATION) -> str:
    nbytes = raw.FPDFAnnot_GetFormFieldName(document.formenv, mark, None, 0)
    held = (raw.FPDF_WCHAR * (nbytes // 2))()
    raw.FPDFAnnot_GetFormFieldName(document.formenv, mark, held, nbytes)
    return bytes(held).decode("utf-16-le").rstrip("\0")


def type_in(document: pdfium.PdfDocument, number: int, answers: list[tuple[Field, str]]) -> None:
    """Type the answers, then make them part of the page, where they can be read like what is
    printed.
    """
    page = document[number]
    for field, answer in answers:
        # a field that already has this answer, from another page, would not be drawn
        enter(document, page, field, "")
        enter(document, page, field, answer)
    raw.FPDFPage_Flatten(page, raw.FLAT_NORMALDISPLAY)
    page.close()  # an open page does not show what was flattened


def enter(document: pdfium.PdfDocument, page: pdfium.PdfPage, field: Field, text: str) -> None:
    mark = raw.FPDFPage_GetAnnot(page, field.index)
    raw.FORM_SetFocusedAnnot(document.formenv, mark)
    raw.FORM_SelectAllText(document.formenv, page)
    raw.FORM_ReplaceSelection(document.formenv, page, wide(text))
    raw.FORM_ForceToKillFocus(document.formenv)  # only now the field is drawn with what it holds
    raw.FPDFPage_CloseAnnot(mark)


def wide(text: str) -> ctypes.Array[ctypes.c_ushort]:
    encoded = text.encode("utf-16-le") + b"\0\0"
    return (raw.FPDF_WCHAR * (len(encoded) // 2)).from_buffer_copy(encoded)


def read(document: pdfium.PdfDocument, number: int) -> list[Letter]:
    """The characters of a page, in the order of the file."""
    page = document[number]
    text = page.get_textpage()
    found = [read_letter(text, index) for index in range(text.count_chars())]
    text.close()
    page.close()
    return found


def read_letter(text: pdfium.PdfTextPage, index: int) -> Letter:
    letter = chr(raw.FPDFText_GetUnicode(text, index))
    # loose: from the font's ascent to its descent, whatever the letter
    box = Box(*text.get_charbox(index, loose=True))
    if letter in BREAKS or not letter.isprintable() or letter.isspace() or box.width <= 0:
        return Letter(letter, None)
    return Letter(letter, box, raw.FPDFText_GetFontSize(text, index), is_bold(text, index))


def is_bold(text: pdfium.PdfTextPage, index: int) -> bool:
    name = (ctypes.c_char * 96)()
    raw.FPDFText_GetFontInfo(text, index, name, len(name), None)
    return b"bold" in name.value.lower() or raw.FPDFText_GetFontWeight(text, index) >= BOLD


def added(before: list[Letter], after: list[Letter]) -> list[Letter]:
    """What stands on the page now and did not before; spaces stay."""
    known = {(one.text, one.box) for one in before if one.box}
    return [one for one in after if one.box is None or (one.text, one.box) not in known]


def spell(letters: list[Letter], fields: list[Field] | None = None) -> list[Word]:
    """Letters put together to words.

    fields: where only letters within one of them count, and no word spans two.
    """
    words: list[Word] = []
    held: list[Letter] = []
    place: Field | None = None
    for letter in [*letters, Letter(" ", None)]:
        here = field_of(letter.box, fields) if fields is not None and letter.box else None
        is_out = letter.box is None or (fields is not None and here is None)
        if held and (is_out or here is not place or not follows(held[-1], letter)):
            words.append(join(held, place))
            held = []
        if not is_out:
            held.append(letter)
            place = here
    return words


def field_of(box: Box, fields: list[Field]) -> Field | None:
    return next((one for one in fields if one.box.holds(box)), None)


def follows(last: Letter, letter: Letter) -> bool:
    """Whether the letter stands next to the last one, on its line."""
    if last.box is None or letter.box is None:
        return False
    gap, height = letter.box.left - last.box.right, last.box.height
    return -height < gap < height / 2 and abs(letter.box.middle - last.box.middle) < height / 2


def join(letters: list[Letter], place: Field | None) -> Word:
    boxes = [one.box for one in letters if one.box]
    box = Box(
        min(one.left for one in boxes),
        min(one.bottom for one in boxes),
        max(one.right for one in boxes),
        max(one.top for one in boxes),
    )
    text = "".join(one.text for one in letters)
    return Word(text, box, letters[0].size, all(one.is_bold for one in letters), place)


def draw(
    document: pdfium.PdfDocument, number: int, pixels: int
) -> tuple[tuple[float, float], Tensor]:
    """The page's size in points and its picture: (3, pixels, pixels) uint8."""
    page = document[number]
    bitmap = pdfium.PdfBitmap.new_native(pixels, pixels, raw.FPDFBitmap_BGR, rev_byteorder=True)
    bitmap.fill_rect((255, 255, 255, 255), 0, 0, pixels, pixels)
    raw.FPDF_RenderPageBitmap(bitmap, page, 0, 0, pixels, pixels, 0, raw.FPDF_REVERSE_BYTE_ORDER)
    picture = torch.from_numpy(bitmap.to_numpy().copy()).permute(2, 0, 1).contiguous()
    size = page.get_size()
    page.close()
    return size, picture
