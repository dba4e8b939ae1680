"""How films are opened, what their first bytes say, and whether all of a file is there."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import av

from minimodel.data.pictures import one_line
from minimodel.errors import MinimodelError

CUT, JOINED = "its end is missing", "something else follows in the same file, which isn't read"
MOST_FAILURES = 100  # in a row, before a file is given up
# Those that are tried: libav knows others that play what is elsewhere, or draw texts.
READ = (
    "mov,avi,matroska,mpegts,mpeg,mpegvideo,asf,flv,ogg,gif,apng,mxf,nut,rm,dv,ivf,wtv,swf,yuv4mpegpipe,h264,hevc,m4v,"
)
READ += "obu,av1,mjpeg,vc1,mp3,wav,flac,aac"
# How films begin: .mp4 and .mov, .avi, .mkv and .webm, .ogv, .flv, .wmv, .mpg, and .ts with and without times.
FILMS = rb"....(ftyp|moov|mdat|wide)|RIFF....AVI |\x1a\x45\xdf\xa3|OggS|FLV\x01|\x30\x26\xb2\x75\x8e\x66\xcf\x11"
FILMS += rb"|\0\0\x01[\xba\xb3]|\x47.{187}\x47|.{4}\x47.{191}\x47"
# And how pictures begin: kinds of .mp4, .png, .jpg, .webp, .tif, .bmp, .jp2, .ppm.
BOXED = rb"....ftyp(hei[cmsx]|hev[cmx]|mif1|msf1|avif)"
PICTURES = BOXED + rb"|\x89PNG|\xff\xd8\xff|RIFF....WEBP|II\*\0|MM\0\*|BM....\0\0\0\0|\0\0\0\x0cjP  |P[1-6]\s"


def file_url(path: Path) -> str:
    """The name by which libav knows a file; as it is, 12:30.mp4 would be a protocol called 12."""
    return f"file:{path}"


def holds_film(path: Path) -> bool:
    """Whether a file's first bytes are those of a film; .gif counts as a picture."""
    head = read_head(path)
    return re.match(FILMS, head, re.DOTALL) is not None and not re.match(BOXED, head, re.DOTALL)


def holds_picture(path: Path) -> bool:
    """Whether they are those of a picture that doesn't move; a moving .png counts as a film."""
    head = read_head(path)
    return re.match(PICTURES, head, re.DOTALL) is not None and b"acTL" not in head.split(b"IDAT")[0]


def read_head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4096)
    except OSError:
        return b""


def open_film(path: Path) -> tuple[av.container.InputContainer, av.stream.Stream]:
    """The container and its stream of pictures. MinimodelError for what is no film."""
    try:
        options = {"format_whitelist": READ, "protocol_whitelist": "file"}
        container = av.open(file_url(path), container_options=options, metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as error:
        unknown = isinstance(error, av.ArgumentError | av.InvalidDataError)
        reason = "it is no film of a known kind, or its beginning is damaged" if unknown else one_line(error)
        if path.is_file() and not path.stat().st_size:
            reason = "the file is empty"
        elif path.is_file() and what_is_wrong(path) == CUT:
            reason = CUT
        raise MinimodelError(f"{path}: not a video that can be read ({reason})") from error
    cover = av.stream.Disposition.attached_pic  # of a song
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    reason = ""
    if not streams:
        reason = "no video"
    elif streams[0].codec_context is None:
        reason = "pictures of a codec that isn't known"
    if reason:
        container.close()
        raise MinimodelError(f"{path}: holds {reason}" + (f": {CUT}" if what_is_wrong(path) == CUT else ""))
    return container, streams[0]


def find_sound(container: av.container.InputContainer) -> av.stream.Stream | None:
    """The stream that is heard; one that can't be decoded, or has no rate, isn't."""
    return next((s for s in container.streams.audio if s.codec_context is not None and s.rate and s.time_base), None)


def read_packets(
    container: av.container.InputContainer, *streams: av.stream.Stream, failed: list[av.FFmpegError] | None = None
) -> Iterator[av.Packet]:
    """The packets of these streams, the last ones empty. What can't be read between them is stepped over, and goes
    into ``failed``."""
    failed = [] if failed is None else failed
    in_a_row = 0
    while in_a_row < MOST_FAILURES:
        try:
            for packet in container.demux(*streams):
                in_a_row = 0
                yield packet
            return
        except av.FFmpegError as error:
            failed.append(error)
            in_a_row += 1


def decode_packet(stream: av.stream.Stream, packet: av.Packet) -> Iterator[av.frame.Frame | av.FFmpegError]:
    """The frames that a packet brings forth, and what went wrong."""
    for _ in range(MOST_FAILURES):
        try:
            yield from stream.decode(packet)
            return
        except EOFError:
            return
        except av.FFmpegError as error:
            yield error
        if packet.size:
            return
        # An empty packet asks for all that is left: more may come after what is broken.


def what_is_wrong(path: Path) -> str | None:
    """What the outermost layer of a file says against it: `CUT` or `JOINED`."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
        try:
            if re.match(rb"....(ftyp|moov|mdat|wide|free|skip)", head, re.DOTALL):
                end = _end_of_boxes(file, size)
            elif head[:3] == b"GIF":
                end = _end_of_gif(file)
            elif head[:4] == b"RIFF":
                end = int.from_bytes(head[4:8], "little") + 8
            elif head[:4] == b"\x1a\x45\xdf\xa3":
                end = _end_of_matroska(head, size)
            else:
                return None
        except IndexError:  # it ends where it should say how it goes on
            return CUT
        if end > size:
            return CUT
        file.seek(end)
        rest = b""
        while not rest and (read := file.read(2**20)):
            rest = read.strip(b"\0\n")  # what fills a file up says nothing
    return JOINED if rest and rest[8:12] != b"AVIX" else None  # so long .avi go on


def _end_of_boxes(file: BinaryIO, size: int) -> int:
    """Of .mp4 and .mov, which are a row of boxes, each with its length: where the row ends, or another film begins."""
    at, films = 0, 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        films += kind == b"moov"
        if films > 1 or not re.fullmatch(rb"[\w \xa9-]{4}", kind):
            break
        if length == 1:  # too long for four bytes
            length = int.from_bytes(head[8:16], "big")
        if length == 0:  # until the end
            return size
        if length < 8:
            break
        at += length
    return at


def _end_of_gif(file: BinaryIO) -> int:
    """Blocks, the last of which says that it is."""
    file.seek(0)
    head = file.read(13)
    file.seek(_colours(head[10]), 1)
    while (mark := file.read(1)[0]) != 0x3B:
        if mark == 0x21:  # an extension and its kind
            file.seek(1, 1)
        elif mark == 0x2C:  # a picture: its place, its colours, and the width of its codes
            file.seek(_colours(file.read(9)[8]) + 1, 1)
        else:
            break
        while length := file.read(1)[0]:
            file.seek(length, 1)
    return file.tell()


def _colours(flags: int) -> int:
    """Bytes of a table of colours."""
    return 3 << (flags & 7) + 1 if flags & 128 else 0


def _end_of_matroska(head: bytes, size: int) -> int:
    """Of .mkv and .webm: a header, then a segment that may tell its length."""

    def read_length(at: int) -> tuple[int | None, int]:
        width = 9 - head[at].bit_length()
        unknown = (1 << 7 * width) - 1
        value = int.from_bytes(head[at : at + width], "big") & unknown
        return (None if value == unknown else value), at + width

    length, at = read_length(4)
    at += length or 0
    if head[at : at + 4] != b"\x18\x53\x80\x67" or at + 12 > len(head):
        return size
    length, at = read_length(at + 4)
    return size if length is None else at + length
