"""Compressed files: all that is readable in them is read, and no more."""

import bz2
import contextlib
import gzip
import lzma

import pytest

from data.preparing import compressed
from data.preparing.compressed import Behind, Gap, InputError, read_blocks

COMPRESS = [gzip.compress, bz2.compress, lzma.compress]
# It has several parts, and compresses as little as text.
CONTENT = b''.join(
  b'%d: %x\n' % (number, pow(3, number, 1 << 127)) for number in range(9_000)
)


@pytest.fixture
def read(tmp_path, monkeypatch):
  """Reads a file with some content: its bytes, and the gaps between them."""

  def read(data, size=1 << 20):
    (tmp_path / 'file').write_bytes(data)
    with open(tmp_path / 'file', 'rb') as raw:
      found = list(read_blocks(raw, size))
    assert all(len(one) <= size for one in found if isinstance(one, bytes))
    joined = [b'']
    for one in found:
      if isinstance(one, bytes):
        joined[-1] += one
      else:
        joined += [one, b'']
    return joined

  monkeypatch.setattr(compressed, '_PART_BYTES', 5_000)
  return read


@pytest.mark.parametrize('compress', [bytes, *COMPRESS])
@pytest.mark.parametrize('size', [700, 1 << 20])
def test_a_whole_file_is_read_in_one_or_in_many_streams(read, compress, size):
  assert read(compress(CONTENT), size) == [CONTENT]
  parts = (CONTENT[:300], CONTENT[300:70_000], CONTENT[70_000:])
  assert read(b''.join(map(compress, parts)), size) == [CONTENT]
  assert read(compress(b''), size) == [b'']


@pytest.mark.parametrize('compress', COMPRESS)
def test_bytes_behind_a_verified_end_are_no_data(read, compress):
  whole = compress(CONTENT)
  assert read(whole + b'\0' * 100) == [CONTENT]
  # However long the padding is, what follows is read.
  for count in (1 << 16, (1 << 16) - 1, 200_000):
    found = read(whole + b'\0' * count + whole)
    assert b''.join(found) == 2 * CONTENT
  for behind in (b'x', b'\n' * 6, b'garbage' * 2_000):
    assert read(whole + behind) == [CONTENT, Behind(), b'']


@pytest.mark.parametrize(
  ('compress', 'end'),
  # Bytes that follow the data, their checksum among them.
  [(gzip.compress, 8), (bz2.compress, 10), (lzma.compress, 12)],
)
def test_a_file_without_its_end_is_read_whole(read, compress, end):
  whole = compress(CONTENT)
  for cut in range(1, end + 1):
    found, gap, rest = read(whole[:-cut])
    assert (found, type(gap), rest) == (CONTENT, Gap, b''), cut


@pytest.mark.parametrize('compress', COMPRESS)
def test_what_is_before_damage_is_read_up_to_it(read, compress):
  whole = compress(CONTENT)
  begun, gap, rest = read(whole[: len(whole) * 9 // 10])
  assert (isinstance(gap, Gap), rest) == (True, b'')
  assert CONTENT.startswith(begun)
  # bz2 verifies 900 kB at a time, and here there is one such block.
  assert len(begun) > 0.8 * len(CONTENT) or compress is bz2.compress
  # It reads up to the byte where it cannot go on.
  if compress is not gzip.compress:
    damaged = bytearray(compress(CONTENT[:60_000]))
    damaged[len(damaged) // 2] ^= 0xFF
    one = (
      bz2.BZ2Decompressor()
      if compress is bz2.compress
      else lzma.LZMADecompressor()
    )
    wanted = b''
    with contextlib.suppress(OSError, lzma.LZMAError):
      for at in range(len(damaged)):
        data = bytes(damaged[at : at + 1])
        while more := one.decompress(data, 1):
          wanted, data = wanted + more, b''
    assert read(bytes(damaged))[0] == wanted
  # With a wrong checksum it reads everything.
  if compress is gzip.compress:
    damaged = whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]
    assert read(damaged)[0] == CONTENT


@pytest.mark.parametrize('compress', COMPRESS)
def test_what_is_read_does_not_depend_on_the_size_of_parts(
  read, monkeypatch, compress
):
  # Long matches, of which a part may end anywhere.
  whole = compress(b''.join(b'%d and again\r\n' % (n // 9) for n in range(60)))
  for place in range(6, len(whole)):
    for bit in (0x01, 0xFF):
      damaged = bytearray(whole)
      damaged[place] ^= bit
      found = []
      for size in (1 << 16, 50, 20):
        monkeypatch.setattr('data.preparing.compressed._PART_BYTES', size)
        found.append(read(bytes(damaged)))
      assert found[0] == found[1] == found[2], (place, bit)


@pytest.mark.parametrize('compress', COMPRESS)
def test_behind_damage_the_next_whole_stream_is_read(read, compress):
  parts = [CONTENT[at : at + 60_000] for at in range(0, 240_000, 60_000)]
  streams = [bytearray(compress(part)) for part in parts]
  streams[1][len(streams[1]) // 2] ^= 0xFF
  before, gap, behind = read(b''.join(streams))
  assert before.startswith(parts[0])
  assert isinstance(gap, Gap)
  assert behind == parts[2] + parts[3]
  # A damaged stream is not the next one.
  streams[2][len(streams[2]) // 2] ^= 0xFF
  assert read(b''.join(streams))[-1] == parts[3]


def test_zstd_is_a_sentence(read):
  with pytest.raises(InputError, match='compressed with zstd, which is not'):
    read(b'\x28\xb5\x2f\xfd' + b'\0' * 20)
