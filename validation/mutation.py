"""Would the tests notice if a line of the mathematics were wrong? Each line of `csrc/core` is broken in every way that
`validation/mutation.rules` names (a sign, an operator, a comparison, an index, the order of arguments, a constant's
first and last digits), one break at a time, and the tests judge each of these mutants. `core_test` knows the
mathematics: what it fails is wrong. The committed bits know only what was: what they alone notice has changed and need
not be wrong, which is all that can be said of the last digit of a coefficient, for which the function's stated error
leaves room. A mutant with the object code of the original is equivalent, by proof. What is left is explained in
`validation/mutants.txt`. The complete campaign (`python -m validation.mutation --all`) takes some ten minutes of one
core; its record is committed, and counts while the core, the rules and these tests are today's. Each run here judges an
even sample of it again. Lines that only nvcc reads are left out.
"""

import argparse
import collections
import json
import re
from collections.abc import Sequence
from datetime import date

from validation.evidence import Finding, Section, Table
from validation.mutants import Jury, Mutant, Outcome, all_mutants, digest_of_sources
from validation.variants import ROOT

RECORD = ROOT / "validation" / "mutation.json"
EXPLAINED = ROOT / "validation" / "mutants.txt"
SAMPLE = {True: 25, False: 300}  # by `quick`
CAUGHT = (Outcome.STILLBORN, Outcome.MATHEMATICS, Outcome.GOLDEN, Outcome.SAME_CODE)


def name(mutant: str) -> str:
    """Without its line number, which changes when lines are added above."""
    return re.sub(r"^([\w.]+):\d+:", r"\1:", mutant)


def explained() -> set[str]:
    """The names in EXPLAINED, where each has a line, with the reason indented below it or below the last of several."""
    lines = EXPLAINED.read_text().splitlines()
    return {name(line) for line in lines if " ==> " in line and not line.startswith(("#", " "))}


def judge_all(mutants: Sequence[Mutant]) -> dict[Mutant, Outcome]:
    jury, judged = Jury(), {}
    for mutant in mutants:
        judged[mutant] = outcome = jury.judge(mutant)
        if outcome not in (Outcome.STILLBORN, Outcome.MATHEMATICS):
            print(f"{outcome.value}: {mutant}", flush=True)
    return judged


def unexplained(judged: dict[Mutant, Outcome]) -> list[str]:
    known = explained()
    return [
        str(mutant) for mutant, outcome in judged.items() if outcome not in CAUGHT and name(str(mutant)) not in known
    ]


def write_record(judged: dict[Mutant, Outcome]) -> None:
    """Names stand in it where they say something: which mutants are only changes, and which are left."""
    named = {outcome: [str(mutant) for mutant in judged if judged[mutant] is outcome] for outcome in Outcome}
    record = {
        "date": date.today().isoformat(),
        "sources": digest_of_sources(),
        "outcomes": {outcome.value: len(named[outcome]) for outcome in Outcome},
        Outcome.GOLDEN.value: named[Outcome.GOLDEN],
        Outcome.SURVIVED.value: named[Outcome.SURVIVED],
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


def collect(quick: bool) -> Section:
    record = json.loads(RECORD.read_text())
    outcomes, survived = record["outcomes"], record[Outcome.SURVIVED.value]
    known = explained()
    left = [mutant for mutant in survived if name(mutant) not in known]
    total, compiled = sum(outcomes.values()), sum(outcomes.values()) - outcomes[Outcome.STILLBORN.value]
    mutants = all_mutants()
    step = len(mutants) / SAMPLE[quick]
    sample = [mutants[int(i * step)] for i in range(SAMPLE[quick])]
    judged = judge_all(sample)
    counts = collections.Counter(judged.values())
    killed = counts[Outcome.MATHEMATICS] + counts[Outcome.GOLDEN]
    alive = unexplained(judged)
    same_sources = record["sources"] == digest_of_sources() and total == len(mutants)
    findings = [
        Finding(
            "the complete campaign was run on these very sources",
            f"{record['date']}, {total} mutants; core, rules and tests have {'not ' * same_sources}changed since",
            "the record's digest is today's",
            same_sources,
        ),
        Finding(
            "mutants of that campaign that nothing notices",
            f"{len(left)} of {compiled} without a reason, {len(survived) - len(left)} explained"
            + "".join(f"; {mutant}" for mutant in left[:3]),
            "0 without a reason",
            not left,
        ),
        Finding(
            "an even sample of them, judged again now",
            f"{killed} of {len(sample)} killed, {len(alive)} neither killed nor explained"
            + "".join(f"; {mutant}" for mutant in alive[:3]),
            "0 neither killed nor explained",
            not alive,
        ),
    ]
    rows = [[value, str(outcomes[value]), str(counts[Outcome(value)])] for value in outcomes]
    table = Table("Mutants of the core", ["outcome", "complete campaign", "sample of today"], rows)
    return Section("Mutation", __doc__ or "", findings, [table])


def main() -> None:
    parser = argparse.ArgumentParser(description="Breaks every line of csrc/core and records what the tests notice.")
    parser.add_argument(
        "--all", action="store_true", required=True, help="the complete campaign: ten minutes of a core"
    )
    parser.parse_args()
    judged = judge_all(all_mutants())
    write_record(judged)
    print(*unexplained(judged), sep="\n")


if __name__ == "__main__":
    main()
