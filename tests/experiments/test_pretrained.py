"""Own samples of a pretrained model: the texts of a seed, and the table over seeds."""

from experiments.collapse import pretrained
from ramp.files import to_json, write_kept


def write_arm(path, policy, bits):
    (path / "synth").mkdir(parents=True)
    history = [{"first_bpb": bits[0], "bpb": b} for b in bits[1:]]
    write_kept(path / "synth" / "history.json", to_json(history).encode())
    report = {"policy": policy, "first_bpb": 2.0, "final_bpb": 2.0 * bits[-1] / bits[0]}
    (path / "report.json").write_text(to_json({"synthesize": report}))


def test_rises_are_of_a_seeds_own_first_model(tmp_path):
    for seed, first in enumerate((1.0, 2.0)):
        run = tmp_path / f"seed-{seed}"
        write_arm(run, "replace", (first, 1.01 * first, 1.03 * first))
        write_arm(run / "rivals" / "accumulate", "accumulate", (first, first, 1.01 * first))
    head, _, *rows = pretrained.table([tmp_path / "seed-0", tmp_path / "seed-1"])[:4]
    assert head == "| arm | after 1 | after 2 | handed back | seeds |"
    # Texts differ between seeds, so only what is relative to a seed's first model has a mean.
    assert rows[0] == "| replace | 1.000 ± 0.000 | 3.000 ± 0.000 | 3.000 ± 0.000 | 2 |"
    assert rows[1] == "| accumulate | 0.000 ± 0.000 | 1.000 ± 0.000 | 1.000 ± 0.000 | 2 |"


def test_a_seed_has_texts_of_its_own():
    one, again, other = (pretrained.draw_texts(seed) for seed in (1, 1, 2))
    assert one == again and len(one) == pretrained.NUM_TEXTS
    assert len({*one} & {*other}) < len(one) / 5
    assert all(len(text) <= pretrained.NUM_CHARACTERS for text in one)
