from test_text import TEST, make_documents, write_corpus

from scripts import text_speed


def test_speeds_are_of_the_sizes_asked_for(tmp_path, monkeypatch, capsys):
  folder = write_corpus(
    tmp_path / 'made', make_documents([30] * 40, first=1_000), TEST
  )
  monkeypatch.setattr(text_speed, 'SIZES', ((4, 8),))
  speeds = text_speed.measure(
    str(folder), seconds=0.02, sizes=((4, 8), (2, 64))
  )
  assert [speed[:2] for speed in speeds] == [(4, 8), (2, 64)]
  assert all(speed.tokens_per_second > 0 for speed in speeds)
  assert text_speed.main([f'--name={folder}', '--seconds=0.02']) is None
  assert 'M tokens/s' in capsys.readouterr().out


def test_no_text_is_one_sentence(tmp_path):
  message = text_speed.main([f'--name={tmp_path / "nowhere"}'])
  assert message.startswith('There is no prepared text in')
