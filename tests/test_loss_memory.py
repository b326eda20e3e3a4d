"""The chunked loss takes less memory, by the compiler's own account."""

import io

from rich.console import Console

from scripts import loss_memory

SIZES = loss_memory.Sizes(
  lanes=32, tokens=16, words=3_000, embedding=8, hidden=32
)


def test_chunks_take_at_most_a_quarter_of_the_plain_losss_memory():
  name = 'cross_entropy'
  peaks = list(loss_memory.measure([name], [32], 'float32', SIZES))
  found = {peak[:3]: peak.num_bytes for peak in peaks}
  for what in ('loss', 'update'):
    plain, chunked = (found[what, name, chunk] for chunk in (None, 32))
    # All logits of the student, at the least.
    assert plain > 4 * SIZES.lanes * SIZES.tokens * SIZES.words
    assert chunked < plain / 4
  out = io.StringIO()
  Console(file=out, width=100).print(loss_memory.table(peaks))
  assert out.getvalue().count(' MB ') == 4
