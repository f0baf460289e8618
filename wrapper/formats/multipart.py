r"""Finds the value of one small text field in a multipart/form-data stream.

The gateway routes `/v1/audio/transcriptions`, `/v1/images/edits` and their like by the form
field `model`, and must not change, rebuild or hold the upload to do so. `FieldFinder` reads
beside the bytes, piece by piece, with memory bounded by one part's headers and one field value.

    PREAMBLE --boundary--> DELIMITER --> HEADERS --> CONTENT --boundary--> DELIMITER ...
                               \ "--"
                                EPILOGUE

Invariant: what is found here is what the provider will find. Multipart has many
lax readers (bare LF as a line end, two ways to unescape a name, folded headers, a second field
of the same name), and with a body on which two readers could disagree a client could be checked for
one model and served another. Such a body gets a `problem`, never a guess.

RFC 7578 (form-data), RFC 2046 section 5.1 (delimiters), RFC 2183 (Content-Disposition).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import unquote

MAX_HEADERS = 16 * 1024
MAX_VALUE = 4 * 1024
MAX_PARTS = 1000
_MAX_PADDING = 256
_MAX_REPEATS = 8

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
# Unquoted boundaries with "=", "/", ":" or "?" are no tokens, but common (JavaMail, SoapUI).
_PARAMETER = re.compile(
    rf'({_TOKEN})=(?:"((?:[^"\\]|\\.)*)"|([!#$%&\'*+\-.^_`|~0-9A-Za-z/:=?]+))[ \t]*'
)
_PARAMETER_LITERAL = re.compile(rf'({_TOKEN})=(?:"([^"]*)"|([!#-+\--:<-~]+))[ \t]*')
_SEPARATORS = re.compile(r"(?:;[ \t]*)+")
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")
# White space is stripped afterwards: matched here, a long run of it could be divided in every way.
_HEADER_LINE = re.compile(rf"({_TOKEN}):([^\x00-\x08\x0a-\x1f\x7f]*)")
_PLAIN_ENCODINGS = frozenset({"7bit", "8bit", "binary"})
_UTF_8 = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})
# In these, bytes below 128 are ASCII, so that an ASCII value is the same text in all of them.
# (Not so in UTF-7, UTF-16, ISO-2022, Shift-JIS, EBCDIC.)
_LIKE_ASCII = re.compile(
    r"(?:iso[-_]?8859[-_]?\d{1,2}(?:[-:]\w+)?|latin-?\d{1,2}|l\d|(?:windows|cp)-?125\d|koi8-[a-z]{1,2}"
    r"|euc-(?:jp|kr|cn|tw)|gb2312|gbk|gb18030|big5)"
)
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([^\s\"';]*)", re.IGNORECASE)

_PREAMBLE, _DELIMITER, _HEADERS, _CONTENT, _EPILOGUE = range(5)


class _Problem(Exception):
    """Why the body cannot be read, or not in one way only."""


class FieldFinder:
    """Reads a multipart/form-data body and finds the text field `name`.

    `value` is the field's text once its end was seen, else None; `spans` are the offsets
    (start, end) in the stream of every place where it stands. `done` says that nothing more
    will be learned: found, ended, or `problem` says in a clause (no full stop) why the body
    must be refused. With `scan_all` the whole stream is read, so that a second field of the
    same name is seen, and is a `problem` when it says something else; a check of a permission by
    the value needs that. Call `end` after the last piece.
    """

    def __init__(self, content_type: str, name: str, *, scan_all: bool = False) -> None:
        self.value: str | None = None
        self.spans: list[tuple[int, int]] = []
        self.done = False
        self.problem: str | None = None
        self.name = name
        self._scan_all = scan_all
        self._state = _PREAMBLE
        self._wanted = False  # the current part is the field
        self._encoding = "utf-8"  # of the field: where it names another charset, only ASCII
        self._parts = 0
        self._buffer = b""
        self._offset = 0  # of the buffer's first byte in the stream
        self._position = 0  # in the buffer: what is before was understood
        self._searched = 0  # in the buffer: no delimiter begins before
        self._delimiter = b""
        try:
            self._delimiter = b"--" + _boundary(content_type)
        except _Problem as problem:
            self._refuse(str(problem))

    def feed(self, data: bytes) -> None:
        """Reads the next piece. A piece after `done` is ignored."""
        if self.done or not data:
            return
        self._buffer = self._buffer + data if self._buffer else data
        try:
            self._understand()
        except _Problem as problem:
            self._refuse(str(problem))
        self._forget()

    def end(self) -> None:
        """The stream is over; one without its closing boundary was cut short."""
        if not self.done and self._state != _EPILOGUE:
            self._refuse("the multipart body ends without its closing boundary")
        self.done = True
        self._buffer = b""

    def _refuse(self, problem: str) -> None:
        self.problem, self.value, self.done = problem, None, True

    def _understand(self) -> None:
        while self._step() and not self.done:
            pass

    def _step(self) -> bool:
        """Understands one element; False: more data is needed."""
        if self._state == _DELIMITER:
            return self._after_delimiter()
        if self._state == _HEADERS:
            return self._headers()
        return self._until_delimiter()

    def _until_delimiter(self) -> bool:
        found = self._find_delimiter()
        if self._wanted and self._state == _CONTENT:
            end = len(self._buffer) - len(self._delimiter) - 2 if found < 0 else found - 2
            if end - self._position > MAX_VALUE:
                raise _Problem(f"the form field '{self.name}' is longer than {MAX_VALUE} bytes")
            if found >= 0:
                self._take(self._position, max(end, self._position))
        if found < 0:
            return False
        self._position = self._searched = found + len(self._delimiter)
        self._state = _DELIMITER
        return True

    def _find_delimiter(self) -> int:
        """Where the next boundary that stands at a line's start begins; -1: not here yet."""
        start = max(self._searched, self._position)
        while (found := self._buffer.find(self._delimiter, start)) >= 0:
            before = self._buffer[max(found - 2, 0) : found]
            at_start = self._state == _PREAMBLE and self._offset + found == 0
            if self._state == _EPILOGUE:
                raise _Problem("the multipart body goes on after its closing boundary")
            if before == b"\r\n" or at_start:
                return found
            if self._state == _PREAMBLE or before[-1:] in (b"\r", b"\n"):
                raise _Problem("a multipart boundary does not stand after a CRLF")
            start = found + 1
        self._searched = max(start, len(self._buffer) - len(self._delimiter) + 1)
        return -1

    def _after_delimiter(self) -> bool:
        """The rest of a delimiter's line: padding and CRLF, or "--" for the last one."""
        rest = self._buffer[self._position : self._position + _MAX_PADDING]
        if len(rest) < 2:
            return False
        if rest.startswith(b"--"):
            self._position = self._searched = self._position + 2
            self._state = _EPILOGUE
            return True
        padding = len(rest) - len(rest.lstrip(b" \t"))
        line_end = rest[padding : padding + 2]
        if line_end == b"\r\n":
            self._begin_part(self._position + padding + 2)
            return True
        if line_end not in (b"", b"\r") or len(rest) == _MAX_PADDING:
            raise _Problem("something other than a CRLF follows a multipart boundary")
        return False

    def _begin_part(self, position: int) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise _Problem(f"the multipart body has more than {MAX_PARTS} parts")
        self._position = self._searched = position
        self._state = _HEADERS

    def _headers(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n", max(self._searched - 3, self._position))
        size = (len(self._buffer) if end < 0 else end) - self._position
        if size > MAX_HEADERS:
            raise _Problem(f"the headers of a multipart part are longer than {MAX_HEADERS} bytes")
        if end < 0:
            self._searched = len(self._buffer)
            return False
        block = self._buffer[self._position : end]
        self._wanted = self._is_wanted(block)
        self._position = self._searched = end + 4
        self._state = _CONTENT
        return True

    def _is_wanted(self, block: bytes) -> bool:
        """Whether these part headers announce the field; _Problem where readers could differ."""
        headers: dict[str, str] = {}
        for line in block.split(b"\r\n"):
            match = _HEADER_LINE.fullmatch(line.decode("latin-1"))
            if match is None or line.startswith(self._delimiter):
                raise _Problem("a header of a multipart part is malformed")
            key = match[1].lower()
            if key in headers:
                raise _Problem("a multipart part has the same header twice")
            headers[key] = match[2].strip(" \t")
        if "content-disposition" not in headers:
            raise _Problem("a multipart part has no Content-Disposition header")
        if not _announces(headers["content-disposition"], self.name):
            return False
        encoding = _encoding(headers)
        if encoding is None:
            raise _Problem(f"the form field '{self.name}' is not plain UTF-8 text")
        self._encoding = encoding
        return True

    def _take(self, start: int, end: int) -> None:
        try:
            text = self._buffer[start:end].decode(self._encoding)
        except UnicodeDecodeError:
            raise _Problem(
                f"the form field '{self.name}' is not {self._encoding.upper()}"
            ) from None
        if self.spans and (text != self.value or len(self.spans) == _MAX_REPEATS):
            raise _Problem(f"the form field '{self.name}' is given twice")
        self.value = text
        self.spans.append((self._offset + start, self._offset + end))
        self.done = not self._scan_all

    def _forget(self) -> None:
        """Drops what was understood, but for the two bytes that may precede a delimiter."""
        if self.done:
            self._buffer = b""
            return
        keep = self._position
        if self._state in (_PREAMBLE, _EPILOGUE) or (self._state == _CONTENT and not self._wanted):
            keep = max(keep, self._searched)
        keep = max(0, keep - 2)
        self._buffer = self._buffer[keep:]
        self._offset += keep
        self._position = max(0, self._position - keep)
        self._searched = max(0, self._searched - keep)


def _boundary(content_type: str) -> bytes:
    media_type, _, rest = content_type.partition(";")
    if media_type.strip(" \t").lower() != "multipart/form-data":
        raise _Problem("the Content-Type is not multipart/form-data")
    parameters = _parameters(";" + rest, _PARAMETER)
    if parameters is None:
        raise _Problem("the Content-Type's parameters are malformed")
    found = [value for key, value in parameters if key == "boundary"]
    if len(found) != 1:
        raise _Problem("the Content-Type of a multipart body needs exactly one boundary")
    if not _BOUNDARY.fullmatch(found[0]):
        raise _Problem("the Content-Type's boundary is not 1 to 70 of the allowed characters")
    return found[0].encode("ascii")


def _parameters(text: str, pattern: re.Pattern[str]) -> list[tuple[str, str]] | None:
    """`; a=b; c="d"` as pairs, quoted values as they stand; None: malformed."""
    pairs = []
    position = 0
    while position < len(text):
        separators = _SEPARATORS.match(text, position)
        if separators is None:
            return None
        if separators.end() == len(text):
            break
        match = pattern.match(text, separators.end())
        if match is None:
            return None
        pairs.append((match[1].lower(), match[3] if match[2] is None else match[2]))
        position = match.end()
    return pairs


def _announces(disposition: str, name: str) -> bool:
    r"""Whether a Content-Disposition names the text field `name` for every reader alike.

    Browsers write a quote in a name as %22, RFC 2183 as \", and some readers unescape neither.
    """
    kind, _, rest = disposition.partition(";")
    parameters = _parameters(";" + rest, _PARAMETER)
    literal = _parameters(";" + rest, _PARAMETER_LITERAL) if "\\" in rest else parameters
    if kind.strip(" \t").lower() != "form-data" or parameters is None:
        raise _Problem("a multipart part's Content-Disposition is malformed")
    keys = [key for key, _ in parameters]
    names = [value for key, value in parameters if key == "name"]
    if len(names) != 1 or any(key.startswith("name*") for key in keys):
        raise _Problem("a multipart part needs exactly one name")
    readings = _readings(names[0])
    for key, value in literal or ():
        if key == "name":
            readings |= _readings(value)
    if name.encode().decode("latin-1") not in readings:
        return False
    if len(readings) > 1:
        raise _Problem(f"the name of the form field '{name}' can be read in two ways")
    if any(key.startswith("filename") for key in keys):
        raise _Problem(f"the form field '{name}' is sent as a file, not as text")
    return True


def _readings(written: str) -> set[str]:
    """Every text that a reader could take a quoted name for."""
    unescaped = re.sub(r"\\(.)", r"\1", written)
    return {written, unescaped, *(unquote(text, "latin-1") for text in (written, unescaped))}


def _encoding(headers: dict[str, str]) -> str | None:
    """How to decode the field: "utf-8"; "ascii" where its charset agrees with UTF-8 on ASCII alone.

    None for a field that some readers decode and others do not.
    """
    if headers.get("content-transfer-encoding", "binary").lower() not in _PLAIN_ENCODINGS:
        return None
    charsets = {name.lower() for name in _CHARSET.findall(headers.get("content-type", ""))}
    if charsets <= _UTF_8:
        return "utf-8"
    return "ascii" if all(map(_LIKE_ASCII.fullmatch, charsets - _UTF_8)) else None


_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.\-\[\]]+")


class FileFinder(FieldFinder):
    """A FieldFinder that also hands the content of the one file in the form to `take`.

    `has_file` says at the end whether there was one, in a part called `file`, and no reader can
    take another part for it.
    """

    def __init__(
        self,
        content_type: str,
        name: str,
        take: Callable[[bytes], object],
        *,
        file: str = "file",
        scan_all: bool = False,
    ) -> None:
        super().__init__(content_type, name, scan_all=scan_all)
        self._file = file
        self._take_file = take
        self._in_file = False
        self._files = 0
        self._plain = True  # no part has a name that readers could understand differently
        self._given = 0  # in the buffer: what is before was handed over

    @property
    def has_file(self) -> bool:
        """Whether the form was read to its end, with exactly one file in it."""
        whole = self._state == _EPILOGUE and self.problem is None
        return whole and self._plain and self._files == 1

    def _is_wanted(self, block: bytes) -> bool:
        self._look(block.decode("latin-1"))
        return super()._is_wanted(block)

    def _look(self, headers: str) -> None:
        """Whether this part is the file."""
        self._in_file = False
        for line in headers.split("\r\n"):
            key, _, value = line.partition(":")
            if key.lower() != "content-disposition":
                continue
            parameters = _parameters(";" + value.partition(";")[2], _PARAMETER) or []
            names = [value for key, value in parameters if key == "name"]
            is_file = any(key.startswith("filename") for key, _ in parameters)
            named = names == [self._file]
            plain = len(names) == 1 and _PLAIN_NAME.fullmatch(names[0])
            alike = any(name.lower() == self._file for name in names)
            self._plain = self._plain and bool(plain) and (named or not (alike or is_file))
            self._in_file = named
            self._files += named

    def _begin_part(self, position: int) -> None:
        self._in_file = False
        super()._begin_part(position)

    def _headers(self) -> bool:
        there = super()._headers()
        if there:
            self._given = self._position
        return there

    def _until_delimiter(self) -> bool:
        in_file = self._in_file and self._state == _CONTENT
        there = super()._until_delimiter()
        if in_file:
            end = self._position - len(self._delimiter) if there else self._searched
            self._give(end - 2)  # the line end belongs to the delimiter
        return there

    def _give(self, end: int) -> None:
        if end > self._given:
            self._take_file(self._buffer[self._given : end])
            self._given = end

    def _forget(self) -> None:
        before = self._offset
        super()._forget()
        self._given = max(0, self._given - (self._offset - before))
