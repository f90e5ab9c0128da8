"""Rows of every task as the hub has them, and the same rows as local files: written by hand, of invented text."""

from __future__ import annotations

import bz2
import json
from dataclasses import dataclass, field

ARC = [
    ("Which of these floats on water?", ["a stone", "a dry cork", "a nail", "wet sand"], 1),
    ("What does a plant need to grow?", ["light", "salt", "smoke", "a lamp shade"], 0),
    ("Which animal lays eggs?", ["cow", "dog", "hen", "old goat"], 2),
    ("What turns water into ice?", ["heat", "wind from the sea", "noise", "cold"], 3),
    ("Which is a metal?", ["wood", "iron", "glass", "clay from a river"], 1),
]
HELLASWAG = [
    ("Washing cars", "A man fills a bucket.", "he", ["sleeps.", "washes a red car.", "flies away."], 1),
    ("Baking bread", "Flour lies on a table. A woman comes in.", "the woman", ["runs.", "bakes.", "x."], 1),
    ("Home and Garden", "How to plant a tree. Dig a deep hole.", "", ["Sit.", "Put it in.", "Sing."], 1),
    ("Kite flying", "Two boys stand on a hill.", "they", ["fly a kite.", "eat it.", "dig for it."], 0),
]
WINOGRANDE = [
    ("The cup did not fit into the box because the", "cup", "box", "was too big.", 1),
    ("Anna paid the old baker, so", "Anna", "the baker", "was thanked.", 2),
    ("The rope held the boat although the", "rope", "boat", "was thin.", 1),
]
TRIVIA = [
    ("Which river flows through Utopia?", "Anyder", ["Anyder", "River Anyder", "The Anyder"]),
    ("Who wrote about Lilliput?", "Jonathan Swift", ["Jonathan Swift", 'J. "Dean" Swift']),
    ("What is the capital of Atlantis?", "Poseidonis", ["Poseidonis"]),
]
TRUTH = [
    (
        "Do fish sleep?",
        {"Yes, most do.": 1, "No.": 0, "Only at noon.": 0},
        {"Yes, most do.": 1, "Yes.": 1, "No.": 0},
    ),
    (
        "Is the moon made of cheese?",
        {"No.": 1, "Yes.": 0},
        {"No.": 1, "Of rock.": 1, "Yes.": 0, "Old cheese.": 0},
    ),
]
ANATOMY = [
    ("Which bone is in the arm?", ["radius", "tibia", "skull", "femur"], 0),
    ("How many lungs, as a rule?", ["one", "two, or so", "three", "four"], 1),
    ("Where is the heart?", ["foot", "hand", "chest", "knee"], 2),
]
DEV = [(f"Example {i}: which letter?", ["this", "that, or", "those", "none"], i % 4) for i in range(5)]
PAGES = [
    " = Old Mill = \n \n The old mill stands , as it did in 1800 , by the river . \n It 's small . \n ",
    " = New Bridge = \n \n = = History = = \n \n A bridge @-@ builder built it ( in stone ) . \n",
]


def lines(rows):
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"


def tabs(*rows):
    return "\n".join("\t".join(map(str, row)) for row in rows) + "\n"


def mmlu(rows, subject):
    return [{"question": q, "subject": subject, "choices": c, "answer": a} for q, c, a in rows]


def mmlu_csv(rows):
    quoted = [[*(f'"{cell}"' for cell in (q, *c)), "ABCD"[a]] for q, c, a in rows]
    return "\n".join(",".join(row) for row in quoted) + "\n"


def pairs(names, rows):
    return [{names[0]: a, names[1]: b, "label": label, "idx": i} for i, (a, b, label) in enumerate(rows)]


ALIKE = [
    ("The mill is old.", "It is an old mill.", 1),
    ('He "ran home.', "She sat down.", 0),
    ("A b c.", "A b c?", 1),
]
CLAIMS = [
    ("A hen laid an egg.", "There is an egg.", 0),
    ("It rains.", "It is dry.", 1),
    ("He sings.", "He is tall.", 1),
]
NLI = [*CLAIMS[:2], ("It snows.", "It is warm.", 2)]
COLA = [
    ("The boy sat.", 1),
    ("Boy the sat.", 0),
    ("She has it.", 1),
    ("Has she well it.", 0),
    ("It is so.", 1),
]
WORDS = ("entailment", "not_entailment")


@dataclass
class Case:
    """One task.

    Args:
        hub: rows by split, with all columns that the hub has or as many as a prompt could need.
        files: the asked rows below `--llm-data`.
        shots: tried besides 0, where the hub's examples can be the same rows.
    """

    hub: dict
    files: dict
    shots: int = 2
    metric: str = "acc"
    filter: str = "none"
    options: dict = field(default_factory=dict)


def both(rows):
    """The asked rows are the examples too."""
    return {"train": rows, "validation": rows}


def cases():
    """By lm-eval's name."""
    labels = ["1", "2", "3", "4"]
    arc = [
        {"id": f"Mill_{i}", "question": q, "choices": {"text": c, "label": labels}, "answerKey": labels[g]}
        for i, (q, c, g) in enumerate(ARC)
    ]
    arc_file = [{"query": f"Question: {q}", "choices": c, "gold": g} for q, c, g in ARC]
    swag = [
        {"ind": i, "activity_label": a, "ctx_a": one, "ctx_b": b, "ctx": f"{one} {b}", "endings": [*e, "stops."],
         "label": str(g), "source_id": "", "split": "val", "split_type": "indomain"}
        for i, (a, one, b, e, g) in enumerate(HELLASWAG)
    ]  # fmt: skip
    swag_file = "".join(
        "\n".join([f"{a}: {one} {b}".rstrip(), str(g), *e, "stops."]) + "\n" for a, one, b, e, g in HELLASWAG
    )
    wino = [
        {"sentence": f"{start} _ {end}", "option1": a, "option2": b, "answer": str(g)}
        for start, a, b, end, g in WINOGRANDE
    ]
    wino_file = [
        {"context_options": [f"{start} {a}", f"{start} {b}"], "continuation": end, "gold": g - 1}
        for start, a, b, end, g in WINOGRANDE
    ]
    trivia = [
        {
            "question": q,
            "question_id": f"tc_{i}",
            "answer": {"value": v, "aliases": a, "type": "WikipediaEntity"},
        }
        for i, (q, v, a) in enumerate(TRIVIA)
    ]
    trivia_file = [{"context": f"Question: {q}\nAnswer:", "answer": v, "aliases": a} for q, v, a in TRIVIA]
    truth = [
        {"question": q, **{n: {"choices": list(t), "labels": list(t.values())} for n, t in
         (("mc1_targets", one), ("mc2_targets", two))}}
        for q, one, two in TRUTH
    ]  # fmt: skip
    truth_file = [{"question": q, "mc1_targets": one, "mc2_targets": two} for q, one, two in TRUTH]
    cola = [{"sentence": s, "label": label, "idx": i} for i, (s, label) in enumerate(COLA)]
    cola_rows = [("gj04", label, "" if label else "*", s) for s, label in COLA]
    two = ("sentence1", "sentence2")
    nli = pairs(("premise", "hypothesis"), NLI)
    nli_file = [{"premise": a, "hypothesis": b, "label": n, "genre_split": "matched"} for a, b, n in NLI]
    mrpc = [("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"), *((n, 1, 2, a, b) for a, b, n in ALIKE)]
    qqp = [("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
           *((i, 1, 2, a, b, n) for i, (a, b, n) in enumerate(ALIKE))]  # fmt: skip
    qnli = [("index", "question", "sentence", "label"), *((0, a, b, WORDS[n]) for a, b, n in CLAIMS)]
    rte = [(*two, "label", "idx"), *((a, b, n, i) for i, (a, b, n) in enumerate(CLAIMS))]
    passages = ["She went to the well to fetch some water", "The key did not fit into the old lock"]
    return {
        "arc_challenge": Case({"train": arc, "validation": arc, "test": arc},
                              {"llm-foundry/arc_challenge.jsonl": lines(arc_file)}, metric="acc_norm"),
        "hellaswag": Case(both(swag), {"hellaswag/hellaswag_val_full.txt.bz2": bz2.compress(swag_file.encode())},
                          metric="acc_norm"),
        "winogrande": Case(both(wino), {"llm-foundry/winogrande.jsonl": lines(wino_file)}),
        "triviaqa": Case(both(trivia), {"llm-foundry/triviaqa_sm_sub.jsonl": lines(trivia_file)},
                         metric="exact_match", filter="remove_whitespace"),
        "truthfulqa_mc2": Case({"validation": truth}, {"truthfulqa/mc_task.json": json.dumps(truth_file)}, shots=0),
        "mmlu_anatomy": Case(
            {"test": mmlu(ANATOMY, "anatomy"), "dev": mmlu(DEV, "anatomy")},
            {"mmlu/test/anatomy_test.csv": mmlu_csv(ANATOMY), "mmlu/dev/anatomy_dev.csv": mmlu_csv(DEV)}, shots=5),
        "lambada_openai": Case(
            {"test": [{"text": text} for text in passages]},
            {"llm-foundry/lambada_openai.jsonl": lines(
                {"context": text.rsplit(" ", 1)[0], "continuation": text.rsplit(" ", 1)[1]} for text in passages)},
            shots=0),
        "wikitext": Case({"train": [{"page": PAGES[0]}], "validation": [{"page": PAGES[0]}],
                          "test": [{"page": page} for page in PAGES]},
                         {"wikitext-2-raw/wiki.test.raw": " \n" + "\n".join(PAGES)}, shots=0,
                         metric="word_perplexity"),
        "cola": Case(both(cola), {"glue/CoLA/in_domain_dev.tsv": tabs(*cola_rows[:3]),
                                  "glue/CoLA/out_of_domain_dev.tsv": tabs(*cola_rows[3:])}, metric="mcc"),
        "sst2": Case(both(cola), {"glue/SST-2/dev.tsv": tabs(*COLA)}),
        "mrpc": Case(both(pairs(two, ALIKE)), {"glue/MRPC/dev.tsv": "\ufeff" + tabs(*mrpc)}),
        "qqp": Case(both(pairs(("question1", "question2"), ALIKE)), {"glue/QQP/dev.tsv": tabs(*qqp)}),
        "rte": Case(both(pairs(two, CLAIMS)), {"glue/RTE/dev.tsv": tabs(*rte)}),
        "qnli": Case(both(pairs(("question", "sentence"), CLAIMS)), {"glue/QNLI/dev.tsv": tabs(*qnli)}),
        "mnli": Case({"train": nli, "validation_matched": nli},
                     {"glue/MNLI/mnli_dev_subset_from_advglue.jsonl": lines(nli_file)}),
    }  # fmt: skip


def write(folder, files):
    """Lay the files out below `folder`."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder
