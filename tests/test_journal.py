"""An event is told once to each reader, and an error is logged once."""

import logging

from codistill.exchange.folder.journal import Journal


def test_events_are_those_of_a_member_since_it_was_last_asked_for():
  journal = Journal([0, 1])
  journal.note(0, 'load', peer=1, publication=5)
  journal.note(1, 'publish', publication=6)
  journal.note(0, 'load', peer=1, publication=7)
  assert [event['publication'] for event in journal.take(0)] == [5, 7]
  assert journal.take(0) == ()
  assert journal.take(1) == ({'event': 'publish', 'publication': 6},)


def test_what_is_wrong_is_said_once_a_kind_and_peer(caplog):
  journal = Journal([0])
  texts = [
    'a/1/9 cannot be read: gone',
    'a/1/10 cannot be read: gone',  # Another path with the same error.
    'a/2/9 cannot be read: gone',
    'a/1/9 is of another config',
  ]
  with caplog.at_level(logging.WARNING, 'codistill'):
    for text in texts:
      journal.note(0, 'failed load', text, peer=int(text[2]))
  del texts[1]
  assert caplog.messages == texts
  events = journal.take(0)
  assert len(events) == 4
  assert [e['message'] for e in events if 'message' in e] == texts


def test_events_that_nobody_reads_do_not_pile_up():
  journal = Journal([0])
  for number in range(3_000):
    journal.note(0, 'publish', publication=number)
  kept = [event['publication'] for event in journal.take(0)]
  assert kept == list(range(2_000, 3_000))
