"""Texts from elsewhere, such as another model's, through the selection of a run.

They pass the run's verifiers, its filters and the guard's judgement of samples, as its own samples
do, and are written to a ledger and a page of their own. What is kept can be a source of text.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

from ramp import config
from ramp.config import Config
from ramp.errors import UserError
from ramp.files import to_json, write_atomic
from ramp.reporting.html import paragraph, section, write_page
from ramp.rundir import RunDir
from ramp.stages.synthesize import GenerationLoop
from ramp.synth import decide, ledger
from ramp.synth.corpus import RealCorpus
from ramp.synth.docs import Docs
from ramp.synth.guard import CollapseGuard, judge_samples
from ramp.synth.history import choose_shown, count_refusals, to_record
from ramp.synth.page import list_sections
from ramp.synth.prompts import Prompt, Sample
from ramp.synth.texts import Vocabulary
from ramp.text.tokenizer import Tokenizer
from ramp.train.preemption import Preemption
from ramp.train.processes import on_writer

SOURCE = "source.txt"  # beside the results: whose they are


def run(rundir: RunDir, c: Config, source: str) -> int:
    """Decide about the texts of a source; 0 where they may teach, 1 where the guard refuses.

    Writes `synth/NAME/` of the run: the ledger g000.parquet, synth.html and kept.jsonl, or
    passed.jsonl where the guard refuses what passed one by one. NAME is that of the source.
    `UserError` for a source without texts.
    """
    name = name_source(rundir.path / "synth", source)
    found = Vocabulary().read(source)
    texts = found.strings
    if not texts:
        raise UserError(f"there is no text in {source}; name its field with #FIELD")
    print(f"{len(texts)} texts of {source}; {', '.join(found.notes)}")
    tokenizer = Tokenizer.load(rundir.tokenizer)
    c = replace(c, synthesize=replace(c.synthesize, policy="guarded"))
    real = RealCorpus.read(rundir.tokens, c, tokenizer)
    loop = GenerationLoop(rundir, c, tokenizer, real, Preemption())
    loop.report_verifiers()
    samples = [
        Sample(Prompt((tokenizer.bos,)), i, (*tokenizer.encode(text), tokenizer.bos), 0.0)
        for i, text in enumerate(texts)
    ]
    none = Docs.from_lists([])
    decisions = decide.decide(loop.verifiers, loop.base.scorer, samples, none, len(samples))
    guard = CollapseGuard(c.synthesize.real_fraction)
    guard, verdict = judge_samples(guard, c.synthesize.guard, decisions.evidence)
    writer = f"{source} {config.fingerprint(texts)}"
    rows = loop.make_rows(0, guard, samples, decisions, writer)
    # No model of ours wrote them.
    rows = [replace(row, logp=float("nan")) for row in rows]
    directory = rundir.path / "synth" / name
    facts = {"decision": str(verdict), "figures": to_json(to_record(decisions.figures))}
    kept = [row for row in rows if row.decision == "kept"]
    # A source of text holds nothing that the guard refuses.
    target, stale = ("kept.jsonl", "passed.jsonl")[:: 1 if guard.weight else -1]
    lines = [json.dumps({"id": row.id, "text": row.text}, ensure_ascii=False) for row in kept]

    def write():
        ledger.write_ledger(directory, 0, rows, loop.identity, facts)
        write_atomic(directory / target, "\n".join([*lines, ""]))
        (directory / stale).unlink(missing_ok=True)
        write_atomic(directory / SOURCE, source)
        write_candidates_page(directory, name, str(verdict), decisions, rows)

    on_writer(write)
    print(f"{len(kept)} of {len(rows)} texts pass, {directory / target}; together: {verdict}")
    for reason, count in count_refusals(rows).items():
        print(f"{count:6} dropped: {reason}")
    return 0 if guard.weight else 1


def write_candidates_page(
    directory: Path,
    name: str,
    verdict: str,
    decisions: decide.SampleDecisions,
    rows: list[ledger.LedgerRow],
) -> None:
    """The page of what was decided."""
    shown = choose_shown(rows)
    parts = [
        section("What the guard says", paragraph(verdict)),
        *list_sections(decisions.figures, count_refusals(rows), shown),
    ]
    write_page(directory / "synth.html", f"{name}: candidates", parts)


def name_source(folder: Path, source: str) -> str:
    """What a source is called in the run's folder: its last part, in letters that a path has.

    Another source of that name keeps its results: this one's has a mark.
    """
    last = Path(source.partition("#")[0].removeprefix("file:")).stem
    name = re.sub(r"[^\w-]+", "-", last).strip("-") or "candidates"
    known = folder / name / SOURCE
    is_other = known.exists() and known.read_text(encoding="utf-8") != source
    return f"{name}-{config.fingerprint(source)[:6]}" if is_other else name
