"""Calibration data: every kind that is read, and each way in which it can be of no use, in one sentence."""

import hashlib
import json
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from fp8cli.core.sampling.data import BUNDLED_MODEL, BUNDLED_NOTE, BUNDLED_STORIES, read_calibration
from fp8cli.errors import BadInput, Fp8Error, UsageError
from fp8cli.samples.encoding import encode_samples, read_rows
from fp8cli.samples.request import SampleRequest
from fp8cli.samples.rows import UnfitData

TALK = [{"role": "user", "content": "Who came?"}, {"role": "assistant", "content": "Tilda came."}]
TEMPLATE = "<s>{% for each in messages %}{{ each.role }}: {{ each.content }}\n{% endfor %}"


def write(path: Path, rows: Iterable[object]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


def texts(count: int) -> list[dict[str, object]]:
    return [{"id": number, "text": f"Story {number}."} for number in range(1, count + 1)]


def refuse(source: str | None, kind: type[Fp8Error] = BadInput, **options: object) -> Fp8Error:
    with pytest.raises(kind) as refusal:
        read_calibration(source, **{"samples": 2, **options})  # type: ignore[arg-type]
    assert not refusal.value.message.endswith(".")
    return refusal.value


def parquet_request(path: Path, **changes: object) -> SampleRequest:
    request = SampleRequest(
        kind="parquet",
        source=path.name,
        place=str(path),
        configuration=None,
        split="train",
        column=None,
        samples=3,
        max_seq_length=64,
        seed=7,
        chat_template=None,
    )
    return replace(request, **changes)  # type: ignore[arg-type]


def write_parquet(path: Path, **columns: object) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table(columns), path)
    return path


# What is read.


def test_rows_of_json_lines_are_drawn_with_the_seed_and_keep_their_order(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", texts(50))
    data = read_calibration(source, samples=5, seed=3)
    assert data.kind == "rows"
    assert data.column == "text"
    drawn = sorted(random.Random(3).sample(range(50), 5))
    assert [(row.number, row.content) for row in data.rows] == [(at + 1, f"Story {at + 1}.") for at in drawn]
    assert read_calibration(source, samples=5, seed=3) == data
    assert read_calibration(source, samples=5, seed=4).fingerprint != data.fingerprint


def test_blank_lines_are_no_rows_and_numbers_are_those_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"text": "one"}\n\n  \n{"text": "two"}')
    assert [(row.number, row.content) for row in read_calibration(str(path), samples=2).rows] == [
        (2, "one"),
        (5, "two"),
    ]


def test_a_named_column_is_taken_before_one_that_is_looked_for(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{"text": "no", "story": "yes"}] * 2)
    assert [row.content for row in read_calibration(source, samples=2, column="story").rows] == ["yes", "yes"]


def test_a_conversation_is_taken_before_the_text_of_the_same_row_and_sharegpt_s_names_are_known(tmp_path: Path) -> None:
    other = [{"from": "human", "value": "Who came?"}, {"from": "gpt", "value": "Tilda came."}]
    source = write(tmp_path / "a.jsonl", [{"text": "x", "conversations": other}])
    data = read_calibration(source, samples=1)
    assert data.column == "conversations"
    assert data.rows[0].content == tuple(TALK)


@pytest.mark.parametrize("rows", [["one", "two"], [{"text": "one"}, {"text": "two"}]], ids=["texts", "objects"])
def test_a_json_list_holds_texts_or_objects(tmp_path: Path, rows: list[object]) -> None:
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert [row.content for row in read_calibration(str(tmp_path / "a.json"), samples=2).rows] == ["one", "two"]


def test_a_text_file_holds_a_text_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\r\n\ntwo\n\n", newline="")
    data = read_calibration(str(tmp_path / "a.txt"), samples=2)
    assert [(row.number, row.content) for row in data.rows] == [(1, "one"), (3, "two")]


def test_a_parquet_file_is_told_by_its_content_and_drawn_from_as_json_lines_are(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=[f"Story {number}." for number in range(1, 51)], id=[0] * 50)
    data = read_calibration(str(path), samples=3, seed=7)
    assert (data.kind, data.place) == ("parquet", str(path))
    assert data.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
    lines = read_calibration(write(tmp_path / "a.jsonl", texts(50)), samples=3, seed=7)
    assert read_rows(parquet_request(path), tmp_path) == lines.rows


def test_a_parquet_file_may_hold_conversations(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", messages=[TALK] * 3)
    assert [row.content for row in read_rows(parquet_request(path), tmp_path)] == [tuple(TALK)] * 3


@pytest.mark.parametrize(
    ("source", "place", "configuration", "split"),
    [
        ("org/stories", "org/stories", None, "train"),
        ("org/stories:test", "org/stories", None, "test"),
        ("org/stories/en", "org/stories", "en", "train"),
        ("org/stories/wikitext-2-raw-v1:validation", "org/stories", "wikitext-2-raw-v1", "validation"),
    ],
)
def test_a_data_set_of_the_hub_has_a_name_a_configuration_and_a_split(
    source: str, place: str, configuration: str | None, split: str
) -> None:
    data = read_calibration(source)
    assert (data.kind, data.place, data.configuration, data.split) == ("hub", place, configuration, split)


def test_the_bundled_model_has_stories_of_its_own_and_the_report_says_which() -> None:
    data = read_calibration(None, model=BUNDLED_MODEL, samples=4)
    known = {json.loads(line)["text"] for line in BUNDLED_STORIES.read_text("utf-8").splitlines()}
    assert {row.content for row in data.rows} <= known
    assert data.notes == (BUNDLED_NOTE,)


# What is refused.


def test_another_model_needs_data_that_is_named(tmp_path: Path) -> None:
    refusal = refuse(None, UsageError, model=tmp_path)
    assert refusal.message == "calibration needs data"
    assert "--calibration-data" in str(refusal.hint)


def test_too_few_rows_are_counted(tmp_path: Path) -> None:
    refusal = refuse(write(tmp_path / "a.jsonl", texts(1)))
    assert refusal.message == f"`{tmp_path}/a.jsonl` has 1 row, and 2 are to be drawn"
    assert "--num-calibration-samples 1" in str(refusal.hint)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "has no rows"),
        ("a.jsonl", b"\n\n", "has no rows"),
        ("a.jsonl", b'{"text": "one"}\n{"text": ', "row 2 of `{}` is not JSON: Expecting value at character 9"),
        ("a.jsonl", b'{"text": "one"}\n["two"]', "row 2 of `{}` is no JSON object"),
        ("a.jsonl", b'{"text": "one"}\n{"text": "\\t "}', "row 2 of `{}` is empty"),
        (
            "a.jsonl",
            b'{"text": "one"}\n{"text": null}',
            "row 2 of `{}` holds nothing, neither a text nor a conversation",
        ),
        ("a.jsonl", b'{"text": 1}\n{"text": 2}', "row 1 of `{}` holds a number, neither a text nor a conversation"),
        ("a.jsonl", b'{"text": "one"}\n{"story": "two"}', "row 2 of `{}` has no `text`, as other rows have"),
        (
            "a.jsonl",
            b'{"a": "x", "b": "y"}\n' * 2,
            "`{}` has none of the columns `messages`, `conversations`, `text`, ",
        ),
        ("a.jsonl", b'{"messages": []}\n' * 2, "row 1 of `{}` is a conversation without messages"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}\n' * 2, "message 1 in row 1 of `{}` is no message"),
        ("a.jsonl", b'{"text": "\\ud800"}\n' * 2, "row 1 of `{}` is no text: it holds half of a surrogate pair"),
        ("a.jsonl", b'{"text": "\xff"}\n' * 2, "row 1 of `{}` is not UTF-8 at byte 10"),
        ("a.jsonl", b"[" * 100_000 + b"\n1\n", "row 1 of `{}` is nested too deeply"),
        ("a.json", b'{"text": "one"}', "`{}` holds no list of rows"),
        ("a.json", b'[{"text": "one"}, "two"]', "row 2 of `{}` is no JSON object"),
        ("a.json", b"[", "`{}` is not JSON: Expecting value at character 1"),
        ("a.txt", b" \n", "`{}` has no rows"),
        ("a.txt", b"a\xff\n", "`{}` is not UTF-8 at byte 1"),
        ("a.parquet", b"PAR1 and then no end", "`{}` is cut short: its end is missing"),
        ("a.parquet", b"no", "`{}` is no Parquet file"),
        ("a.parquet", b"", "`{}` is no Parquet file"),
    ],
)
def test_a_file_of_no_use_is_refused_with_the_row_at_fault(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert message.format(path) in refuse(str(path)).message


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", texts(2))
    refusal = refuse(source, column="story")
    assert refusal.message == f"`{source}` has no column `story`, but `id`, `text`"


def test_hundreds_of_columns_and_a_hostile_name_stay_one_short_line(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{f"\x1b[31m{number}\n" + "x" * 10_000: "" for number in range(300)}] * 2)
    message = refuse(source).message
    assert message.isprintable()
    assert len(message) < 2_000
    assert message.endswith("and 292 more")


def test_a_file_of_plain_texts_has_no_columns(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    assert "without columns" in refuse(str(tmp_path / "a.txt"), UsageError, column="text").message


def test_what_is_not_there_or_not_a_file_is_said(tmp_path: Path) -> None:
    assert refuse(str(tmp_path / "a.jsonl")).message == f"`{tmp_path}/a.jsonl` does not exist"
    assert refuse("nowhere.jsonl").message == "`nowhere.jsonl` does not exist"
    assert refuse(str(tmp_path)).message == f"`{tmp_path}` is a folder"


@pytest.mark.parametrize("source", ["stories", "a/b/c/d", "https://example.org/a/b", "a b/c", "org/name:"])
def test_what_is_neither_a_file_nor_a_name_on_the_hub_is_a_mistake_of_the_command_line(source: str) -> None:
    refusal = refuse(source, UsageError)
    assert refusal.message == f"`{source}` is neither a file nor the name of a data set on the Hub"


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\none\n")
    assert "ends in `.csv`" in refuse(str(tmp_path / "a.csv"), UsageError).message


@pytest.mark.parametrize("samples", [0, -3])
def test_no_samples_are_no_calibration(samples: int) -> None:
    refuse(None, UsageError, model=BUNDLED_MODEL, samples=samples)


@pytest.mark.parametrize(
    ("columns", "changes", "message"),
    [
        ({"text": ["one", "two"]}, {}, "`a.parquet` has 2 rows, and 3 are to be drawn"),
        ({"text": ["one", "", "three"]}, {}, "row 2 of `a.parquet` is empty"),
        ({"text": ["one", None, "three"]}, {}, "row 2 of `a.parquet` holds nothing, neither a text nor a conversation"),
        ({"text": ["a"] * 3}, {"column": "story"}, "`a.parquet` has no column `story`, but `text`"),
        ({"a": [1, 2, 3]}, {"column": "a"}, "row 1 of `a.parquet` holds a number, neither a text nor a conversation"),
    ],
)
def test_a_parquet_file_of_no_use_is_refused_in_the_same_words(
    tmp_path: Path, columns: dict[str, object], changes: dict[str, object], message: str
) -> None:
    path = write_parquet(tmp_path / "a.parquet", **columns)
    with pytest.raises(UnfitData) as refusal:
        read_rows(parquet_request(path, **changes), tmp_path)
    assert refusal.value.message == message


def test_a_parquet_file_with_a_broken_inside_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 this was never a table PAR1")
    with pytest.raises(UnfitData, match=r"`a\.parquet` cannot be read as Parquet: "):
        read_rows(parquet_request(path), tmp_path)


# From rows to token ids.


def test_texts_are_encoded_as_the_tokenizer_does_and_cut(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    stories = ["Tilda came in after Walter. " * 9, "Milo went to the meadow.", "It rained a little."]
    path = write_parquet(tmp_path / "a.parquet", text=stories)
    encoded = encode_samples(parquet_request(path, max_seq_length=9), tmp_path, tokenizer, None)
    assert encoded.ids == tuple(tuple(tokenizer(story)["input_ids"][:9]) for story in stories)
    assert encoded.ids[0][0] == tokenizer.bos_token_id
    assert encoded.tokens == sum(map(len, encoded.ids))
    compact = json.dumps([list(ids) for ids in encoded.ids]).replace(" ", "")
    assert encoded.sha256() == hashlib.sha256(compact.encode()).hexdigest()


def test_no_sample_is_longer_than_the_model_has_positions(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    path = write_parquet(tmp_path / "a.parquet", text=["Tilda came in after Walter. " * 90] * 3)
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    encoded = encode_samples(parquet_request(path, max_seq_length=4096), tmp_path, tokenizer, 512)
    assert (encoded.max_seq_length, {len(ids) for ids in encoded.ids}) == (512, {512})


@pytest.mark.parametrize("where", ["tokenizer", "job"])
def test_conversations_go_through_the_chat_template_which_sets_the_only_bos(tmp_path: Path, where: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    path = write_parquet(tmp_path / "a.parquet", messages=[TALK] * 3)
    if where == "tokenizer":
        tokenizer.chat_template = TEMPLATE
    request = parquet_request(path, chat_template=TEMPLATE if where == "job" else None)
    encoded = encode_samples(request, tmp_path, tokenizer, None)
    plain = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    # The tokenizer sets BOS before a text by itself; the template has set it before this one.
    expected = tuple(plain("user: Who came?\nassistant: Tilda came.\n")["input_ids"])
    assert encoded.ids == (expected,) * 3
    assert expected.count(plain.bos_token_id) == 1
    assert encoded.conversations


def test_conversations_without_a_template_or_that_do_not_fit_it_are_refused(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    path = write_parquet(tmp_path / "a.parquet", messages=[TALK] * 3)
    with pytest.raises(UnfitData, match="are conversations, and the model's tokenizer has no chat template"):
        encode_samples(parquet_request(path), tmp_path, tokenizer, None)
    picky = parquet_request(path, chat_template="{{ raise_exception('roles must alternate.') }}")
    with pytest.raises(UnfitData) as refusal:
        encode_samples(picky, tmp_path, tokenizer, None)
    assert refusal.value.message == "row 1 of `a.parquet` does not fit the chat template: roles must alternate"
