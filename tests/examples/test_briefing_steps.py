"""The steps of the briefing, on the documents that ship with it: what each finds out is known from the documents.

The endpoint of a model is a small server of the tests' own, so that what goes over the wire is tested too.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from steps import language
from steps.analyse import analyse, days_in, names
from steps.check import check
from steps.documents import Analysis, Briefing, Document, Item, Record, Summary
from steps.formats import UnreadableDocumentError
from steps.language import language_of, sentences, stem, words
from steps.read import document_paths, read
from steps.summarise import summarise
from steps.write import headlines, plain_text, shared_subjects, write

KINDS = {
    "calendars.txt": "text",
    "delta-t.csv": "table",
    "earth-rotation.csv": "table",
    "leap-seconds.csv": "table",
    "leap-seconds.txt": "text",
    "leap-smearing.html": "html",
    "rollover.html": "html",
    "standard-time.pdf": "pdf",
    "time-service.epub": "epub",
    "time-zones.csv": "table",
    "tz-theory.html": "html",
    "tzdata-news.md": "markdown",
}
STEP_TIME_MAX_S = 1.0


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def library(documents: Path) -> dict[str, Document]:
    return {Path(path).name: read(path) for path in document_paths(str(documents))}


@pytest.fixture(scope="module")
def items(library: dict[str, Document]) -> list[Item]:
    made = []
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("OPENAI_API_KEY", raising=False)
        environment.delenv("OPENAI_BASE_URL", raising=False)
        for document in library.values():
            analysis = analyse(document)
            summary = summarise(document, analysis)
            made.append(Item(document=document, analysis=analysis, summary=summary, check=check(document, summary)))
    return made


def item_of(items: list[Item], name: str) -> Item:
    return next(item for item in items if item.document.name == name)


# --- the documents ---------------------------------------------------------------------------------------------------


def test_the_folder_holds_what_its_listing_says(documents: Path, library: dict[str, Document]) -> None:
    assert {name: document.kind for name, document in library.items()} == KINDS
    for document in library.values():
        assert document.source, f"{document.name} is not in SOURCES.md"
        assert document.licence
        assert document.title
    listing = (documents / "SOURCES.md").read_text(encoding="utf-8")
    assert [name for name in KINDS if f"`{name}`" not in listing] == []
    assert sum(path.stat().st_size for path in documents.rglob("*") if path.is_file()) < 1_500_000


# --- read ------------------------------------------------------------------------------------------------------------


def test_html_is_read_without_what_stands_around_the_text(library: dict[str, Document]) -> None:
    theory = library["tz-theory.html"]
    assert theory.title == "Theory and pragmatics of the tz code and data"
    prose = [block.text for block in theory.blocks if block.kind == "prose"]
    assert prose[0].startswith(
        "The tz database attempts to record the history and predicted future of civil time scales."
    )
    assert "Please send corrections to this web page" not in theory.text  # the page's footer
    assert theory.text.count("POSIX requires that time_t clock counts exclude leap seconds.") == 1
    assert [block.text for block in theory.blocks if block.kind == "heading"][1] == "Scope of the tz database"


def test_markdown_keeps_headings_and_lists_apart(library: dict[str, Document]) -> None:
    news = library["tzdata-news.md"]
    assert (news.blocks[0].kind, news.blocks[0].text) == ("heading", "Version 2026.6")
    assert "stays on -04 through 2027-11-07." in news.text
    assert "##" not in news.text


def test_a_comment_sign_is_no_part_of_plain_text(library: dict[str, Document]) -> None:
    leap = library["leap-seconds.txt"]
    assert "The first leap second was added on June 30, 1972." in leap.text
    assert {block.text for block in leap.blocks if block.kind == "heading"} >= {"LEAP SECOND", "HISTORY"}
    assert library["calendars.txt"].title == "Calendrical issues"


def test_pdf_lines_become_paragraphs(library: dict[str, Document]) -> None:
    printed = library["standard-time.pdf"]
    assert printed.title == "Standard time and daylight saving: how they came about"
    headings = [block.text for block in printed.blocks if block.kind == "heading"]
    assert headings[1:] == [
        "Railways give Britain one time",
        "Time zones reach North America",
        "Daylight saving is invented, twice",
        "What United States law says",
    ]
    assert "it was they who forced a uniform time on the country." in printed.text  # over a line's end


def test_epub_chapters_come_in_the_order_of_the_spine(library: dict[str, Document]) -> None:
    book = library["time-service.epub"]
    assert book.title == "Introduction to Time Service"
    headings = [block.text for block in book.blocks if block.kind == "heading"]
    assert headings[2:5] == ["Introduction", "Use cases for precision time service", "Time service types"]


def test_a_table_has_its_cells_and_its_description(library: dict[str, Document]) -> None:
    leaps = library["leap-seconds.csv"]
    assert leaps.table is not None
    assert leaps.table.columns == ("date", "TAI_minus_UTC_s")
    assert leaps.table.rows[0] == ("1972-01-01", "10")
    assert leaps.table.rows[-1] == ("2017-01-01", "37")
    assert leaps.blocks[0].text.startswith("Each row after the first is one leap second")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("notes.docx", b"", "is of no known kind"),
        ("broken.pdf", b"this is no PDF", "cannot be read"),
        ("broken.epub", b"this is no zip", "cannot be read"),
        ("latin.txt", b"caf\xe9", "cannot be read"),
        ("empty.csv", b"# nothing\n", "has no rows"),
        ("ragged.csv", b"a,b\n1,2\n3\n", "row 2 has 1 cells and not 2"),
        ("huge.txt", b"x" * 5_000_001, "is longer than"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_reason(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableDocumentError, match=told):
        read(str(tmp_path / name))


def test_a_missing_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(str(tmp_path / "none.txt"))


# --- analyse ---------------------------------------------------------------------------------------------------------


def test_key_terms_are_what_a_document_is_about(items: list[Item]) -> None:
    def terms(name: str) -> list[str]:
        return [term.text for term in item_of(items, name).analysis.terms]

    assert terms("leap-smearing.html")[0] == "leap second"
    assert "Gregorian calendar" in terms("calendars.txt")
    assert {"tz database", "leap seconds"} <= set(terms("tz-theory.html"))
    assert "daylight saving" in terms("standard-time.pdf")


def test_names_are_found_and_ordinary_words_are_not(items: list[Item]) -> None:
    found = [name.text for name in item_of(items, "time-service.epub").analysis.names]
    assert {"NTP", "GPS", "UTC", "NIST", "USNO", "WWVB"} <= set(found)
    assert [count.text for count in names(["The cat saw William Willett.", "Clocks stop.", "Willett saw clocks."])] == [
        "William Willett"
    ]


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("on 2016-12-31.", ["2016-12-31"]),
        ("on 30 June 1972 and on June 30, 1973", ["1972-06-30", "1973-06-30"]),
        ("17 Feb 1945", ["1945-02-17"]),
        ("until 2026-02-30", []),
    ],
)
def test_full_dates_are_understood_in_three_forms(text: str, days: list[str]) -> None:
    assert list(days_in(text)) == days


def test_dates_and_years_come_from_the_prose(items: list[Item]) -> None:
    news = item_of(items, "tzdata-news.md").analysis
    assert news.days[-1].date == "2027-11-07"
    assert news.days[-1].sentence == "Cuba will not fall back 2026-11-01; stays on -04 through 2027-11-07."
    assert news.years[0].text == "2026"
    printed = item_of(items, "standard-time.pdf").analysis
    assert "1883-11-18" in {day.date for day in printed.days}


def test_columns_show_extremes_trends_and_gaps(items: list[Item]) -> None:
    month, mean, shortest, *_ = item_of(items, "earth-rotation.csv").analysis.columns
    assert (month.kind, month.first, month.count) == ("date", "1973-02", 644)
    assert (shortest.lowest, shortest.lowest_at, shortest.unit) == ("-1.6568", "2024-07", "milliseconds")
    assert mean.trend is not None
    assert mean.trend.per_year == pytest.approx(-0.0515, abs=0.0005)
    assert mean.trend.fit > 0.6
    day, difference = item_of(items, "leap-seconds.csv").analysis.columns
    assert day.longest_gap == ("1999-01-01", "2006-01-01")
    assert (difference.first, difference.last, difference.missing) == ("10", "37", 0)
    zones = {column.name: column for column in item_of(items, "time-zones.csv").analysis.columns}
    assert [(value.text, value.count) for value in zones["country"].commonest][:2] == [
        ("United States", 29),
        ("Russia", 27),
    ]
    assert zones["latitude_deg"].trend is None  # no column of dates, so nothing moves
    assert zones["latitude_deg"].lowest_at == "Antarctica/Vostok"


def test_reading_time_and_language(items: list[Item]) -> None:
    theory = item_of(items, "tz-theory.html").analysis
    assert theory.language == "en"
    assert 25 < theory.reading_minutes < 45
    assert language_of("Die Uhr ist nicht mit der Sonne gegangen, und das war für alle neu.") == "de"
    assert language_of("L'heure est la même pour tous les chemins de fer du pays et pour le télégraphe.") == "fr"


def test_sentences_survive_abbreviations() -> None:
    assert sentences("It was Dr. W. H. Wollaston, e.g. in the U.S. Navy.  He died.") == [
        "It was Dr. W. H. Wollaston, e.g. in the U.S. Navy.",
        "He died.",
    ]


# --- summarise -------------------------------------------------------------------------------------------------------


def test_a_local_summary_is_made_of_the_documents_own_sentences(
    items: list[Item], library: dict[str, Document]
) -> None:
    for item in items:
        if item.analysis.columns:
            continue
        assert item.summary.by == "local"
        assert 4 <= len(item.summary.sentences) <= 6
        text = " ".join(library[item.document.name].text.split())
        assert [sentence for sentence in item.summary.sentences if sentence not in text] == []


def test_a_summary_says_what_matters(items: list[Item]) -> None:
    news = " ".join(item_of(items, "tzdata-news.md").summary.sentences)
    assert "Cuba will not fall back 2026-11-01" in news
    rollover = " ".join(item_of(items, "rollover.html").summary.sentences)
    assert "32-bit Unix time will roll over at 2038-01-19" in rollover
    rotation = item_of(items, "earth-rotation.csv").summary.sentences
    assert any("lowest -1.6568 (2024-07)" in sentence for sentence in rotation)
    assert "The longest gap between two rows is from 1999-01-01 to 2006-01-01." in (
        item_of(items, "leap-seconds.csv").summary.sentences
    )


@pytest.mark.parametrize(
    "prose", ["", "Too short.", "One sentence that is long enough to be quoted stands here alone."]
)
def test_a_document_of_next_to_nothing_is_summed_up_all_the_same(tmp_path: Path, prose: str) -> None:
    (tmp_path / "short.txt").write_text(prose, encoding="utf-8")
    document = read(str(tmp_path / "short.txt"))
    analysis = analyse(document)
    summary = summarise(document, analysis)
    assert len(summary.sentences) <= 1
    item = Item(document=document, analysis=analysis, summary=summary, check=check(document, summary))
    assert "Short" in write([item], "One").markdown


class Endpoint:
    """A server that speaks the part of the OpenAI protocol that the step uses, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answer = ""
        self.status = 200
        self.asked: list[dict[str, object]] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                endpoint.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                message = {"role": "assistant", "content": endpoint.answer}
                choices = [{"index": 0, "finish_reason": "stop", "message": message}]
                body = json.dumps(
                    {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": choices}
                )
                self.send_response(endpoint.status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    served = Endpoint()
    thread = Thread(target=served.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("OPENAI_BASE_URL", served.url)
    monkeypatch.setenv("OPENAI_MODEL", "small-model")
    yield served
    served.server.shutdown()
    thread.join()
    served.server.server_close()


def test_a_configured_model_writes_the_summary(endpoint: Endpoint, library: dict[str, Document]) -> None:
    document = library["leap-seconds.txt"]
    endpoint.answer = "- Leap seconds keep UTC near UT1.\n\n- The first came on June 30, 1972.\n"
    summary = summarise(document, analyse(document))
    assert summary.sentences == ("Leap seconds keep UTC near UT1.", "The first came on June 30, 1972.")
    assert (summary.by, summary.model) == ("model", "small-model")
    [asked] = endpoint.asked
    assert asked["model"] == "small-model"
    assert "The first leap second was added on June 30, 1972." in json.dumps(asked["messages"])


def test_what_a_model_makes_up_is_found_and_shown(endpoint: Endpoint, library: dict[str, Document]) -> None:
    document = library["leap-seconds.txt"]
    endpoint.answer = "The first leap second was added in 1974.\nOnly Brazil pays the IERS for bananas from farms."
    analysis = analyse(document)
    summary = summarise(document, analysis)
    checked = check(document, summary)
    assert [(issue.kind, issue.what) for issue in checked.issues] == [
        ("number", "1974 is not where the document speaks of this"),
        ("name", "Brazil is not in the document"),
        ("support", "no passage of the document says this in like words"),
    ]
    written = write([Item(document=document, analysis=analysis, summary=summary, check=checked)]).markdown
    assert "**Issue:**" in written
    assert "written by small-model" in written


def test_an_endpoint_that_fails_fails_the_step(endpoint: Endpoint, library: dict[str, Document]) -> None:
    from openai import InternalServerError

    endpoint.status = 503
    document = library["leap-seconds.txt"]
    with pytest.raises(InternalServerError):
        summarise(document, analyse(document))
    assert len(endpoint.asked) == 1  # tried once: trying again is the engine's work


def test_a_model_that_writes_nothing_fails_the_step(endpoint: Endpoint, library: dict[str, Document]) -> None:
    document = library["leap-seconds.txt"]
    with pytest.raises(ValueError, match="wrote nothing"):
        summarise(document, analyse(document))


def test_a_long_document_is_sent_in_part_and_a_table_not_at_all(
    endpoint: Endpoint, library: dict[str, Document]
) -> None:
    endpoint.answer = "The tz database records the history of civil time scales."
    theory = library["tz-theory.html"]
    summarise(theory, analyse(theory))
    assert len(json.dumps(endpoint.asked[0]["messages"])) < len(theory.text) / 2
    leaps = library["leap-seconds.csv"]
    assert summarise(leaps, analyse(leaps)).by == "local"
    assert len(endpoint.asked) == 1


# --- check -----------------------------------------------------------------------------------------------------------


def told(library: dict[str, Document], name: str, *said: str) -> list[tuple[str, str]]:
    """What the check has against sentences, given as a model's summary of a document."""
    summary = Summary(name=name, sentences=said, by="model", model="m")
    return [(issue.kind, issue.what) for issue in check(library[name], summary).issues]


def test_every_local_summary_is_borne_out(items: list[Item]) -> None:
    assert {item.document.name: item.check.issues for item in items if item.check.issues} == {}
    assert all(item.check.grounded == 1.0 for item in items)
    assert all(item.check.word_for_word == item.check.sentences for item in items if not item.analysis.columns)


def test_a_wrong_figure_is_found(library: dict[str, Document]) -> None:
    right = "The first leap second was added on June 30, 1972."
    assert told(library, "leap-seconds.txt", right) == []
    assert told(library, "leap-seconds.txt", right.replace("1972", "1971")) == [
        ("number", "1971 is not in the document")
    ]
    assert told(library, "leap-seconds.csv", "TAI minus UTC went from 10 to 38 seconds.") == [
        ("number", "38 is not in the document")
    ]


def test_a_figure_may_be_written_otherwise(library: dict[str, Document]) -> None:
    assert told(library, "tzdata-news.md", "Cuba stays on -04 through November 7, 2027.") == []
    assert told(library, "earth-rotation.csv", "The mean excess falls by 0.515 milliseconds in a decade.") == []
    assert told(library, "earth-rotation.csv", "The mean excess falls by 0.615 milliseconds in a decade.") == [
        ("number", "0.615 is not in the document")
    ]


def test_a_name_from_elsewhere_is_found(library: dict[str, Document]) -> None:
    said = "Daylight saving was reinvented by William Marconi, a London builder."
    assert told(library, "standard-time.pdf", said) == [("name", "Marconi is not in the document")]
    assert told(library, "standard-time.pdf", said.replace("Marconi", "Willett")) == []


def test_a_sentence_about_something_else_is_found(library: dict[str, Document]) -> None:
    said = "The harvest of olives was unusually rich and the farmers were content."
    assert told(library, "rollover.html", said) == [("support", "no passage of the document says this in like words")]


def test_coverage_counts_what_the_summary_speaks_of(items: list[Item], library: dict[str, Document]) -> None:
    assert item_of(items, "leap-smearing.html").check.coverage >= 0.8
    one = Summary(name="leap-smearing.html", sentences=("The leap second is smeared.",), by="local")
    assert 0 < check(library["leap-smearing.html"], one).coverage < 0.5


# --- write -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def briefing(items: list[Item]) -> Briefing:
    return write(items, "Keeping time")


def test_a_briefing_has_a_section_for_each_document_and_all_sources(briefing: Briefing, items: list[Item]) -> None:
    lines = briefing.markdown.splitlines()
    assert lines[0] == "# Keeping time"
    headings = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    sections = [f"{number}. {item.document.title}" for number, item in enumerate(items, start=1)]
    assert headings == ["In short", "What stands out", *sections, "Sources"]
    for item in items:
        assert f"- `{item.document.name}`: {item.document.source}. Licence: {item.document.licence}." in lines
        assert all(sentence[:20] in briefing.markdown for sentence in item.summary.sentences)
    assert f"{len(items)} documents, " in briefing.markdown
    assert 1000 < briefing.words < sum(item.document.words for item in items) / 5


def test_what_stands_out_is_taken_from_several_documents(briefing: Briefing, items: list[Item]) -> None:
    shared = {text: {item.document.name for item in among} for text, among in shared_subjects(items)}
    assert shared["leap second"] >= {"leap-seconds.txt", "leap-smearing.html", "rollover.html", "tz-theory.html"}
    assert all(len(among) >= 3 for among in shared.values())
    said = list(headlines(items))
    assert len({item.document.name for _, item in said}) == len(said) == 5
    across = briefing.markdown.partition("## What stands out")[2].partition("## 1.")[0]
    assert "leap second (4)" in across
    assert "mean excess down 0.515 milliseconds per decade since 1973-02" in across
    assert "longest gap 1999-01-01 to 2006-01-01" in across
    assert "2038-01-19: 32-bit Unix time will roll over" in across
    assert "sentences of the summaries are borne out" in across


def test_the_terminal_gets_plain_lines(briefing: Briefing) -> None:
    assert "\x1b" not in briefing.plain
    assert max(len(line) for line in briefing.plain.splitlines()) <= 100
    assert "**" not in briefing.plain
    assert "Cuba will not fall back 2026-11-01" in briefing.plain
    assert plain_text("Snow *and* ice") == "Snow and ice\n"


def test_marks_in_a_documents_text_do_not_become_markdown(tmp_path: Path) -> None:
    file = tmp_path / "marks.txt"
    file.write_text("Sweden decided to *start* a transition <soon> in the year 1700, it is said.", encoding="utf-8")
    document = read(str(file))
    analysis = analyse(document)
    summary = Summary(name=document.name, sentences=("Sweden decided to *start* <soon>.",), by="local")
    written = write([Item(document=document, analysis=analysis, summary=summary, check=check(document, summary))])
    assert "Sweden decided to *start* <soon>." in written.plain


# --- all of them -----------------------------------------------------------------------------------------------------


def test_what_is_handed_on_survives_as_json(
    library: dict[str, Document], items: list[Item], briefing: Briefing
) -> None:
    handed: list[Record] = [*library.values(), *items, briefing]
    for record in handed:
        assert type(record).model_validate_json(record.model_dump_json()) == record
    whole = item_of(items, "tz-theory.html").model_dump() | {"document": library["tz-theory.html"].model_dump()}
    assert Item.model_validate(whole) == item_of(items, "tz-theory.html")


def test_the_steps_are_deterministic(documents: Path, items: list[Item], briefing: Briefing) -> None:
    for name in ("tz-theory.html", "earth-rotation.csv"):
        document = read(str(documents / name))
        analysis = analyse(document)
        summary = summarise(document, analysis)
        again = Item(document=document, analysis=analysis, summary=summary, check=check(document, summary))
        assert again == item_of(items, name)
    assert write(items, "Keeping time") == briefing


def test_the_steps_may_run_in_threads_of_one_process(library: dict[str, Document]) -> None:
    every_word = [word for document in library.values() for word in words(document.text)]
    language._stem.cache_clear()
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            in_threads = list(threads.map(lambda number: [stem(word) for word in every_word[number::8]], range(8)))
    finally:
        sys.setswitchinterval(interval_s)
    language._stem.cache_clear()
    assert in_threads == [[stem(word) for word in every_word[number::8]] for number in range(8)]


def test_no_step_takes_a_second(documents: Path, items: list[Item]) -> None:
    longest = max(items, key=lambda item: item.document.words)

    def cost_s(step: Callable[[], object]) -> float:
        started = time.thread_time()
        step()
        return time.thread_time() - started

    document = read(str(documents / longest.document.name))
    analysis: Analysis = analyse(document)
    summary = summarise(document, analysis)
    costs = {
        "read": cost_s(lambda: read(str(documents / longest.document.name))),
        "analyse": cost_s(lambda: analyse(document)),
        "summarise": cost_s(lambda: summarise(document, analysis)),
        "check": cost_s(lambda: check(document, summary)),
        "write": cost_s(lambda: write(items)),
    }
    assert {step: cost for step, cost in costs.items() if cost > STEP_TIME_MAX_S} == {}
