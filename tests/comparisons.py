"""Comparisons made by hand, one for every shape that a renderer meets; their numbers are easy to follow."""

import math
from dataclasses import replace

from fp8cli.commands.compare import CompareReport
from fp8cli.core.comparing.comparison import (
    ChangedItem,
    Comparison,
    Contest,
    Difference,
    FidelityComparison,
    Flips,
    Interval,
    MetricComparison,
    Quantiles,
    Side,
    TaskComparison,
    Total,
    Verdict,
)
from fp8cli.errors import ExitCode

RIGHT_TO_LEFT = "\u05e9\u05dc\u05d5\u05dd"
HOSTILE = f"$x_1$ | <script>alert('&')</script> \x1b[31m[bold]\n\u202e{RIGHT_TO_LEFT}\u2066 日本 \ud800 \"'"


def report(comparison: Comparison) -> CompareReport:
    codes = {"pass": ExitCode.DONE, "regression": ExitCode.NEGATIVE, "inconclusive": ExitCode.INCONCLUSIVE}
    return CompareReport(comparison=comparison, command=comparison.command, exit_code=codes[comparison.verdict])


def between(low: float, high: float, method: str = "Agresti–Min") -> Interval:
    return Interval(low=low, high=high, confidence=0.95, method=method)


def share(metric: str, base: float, other: float, low: float, high: float, **more: object) -> MetricComparison:
    """A share with a paired interval."""
    made = MetricComparison(
        metric=metric,
        filter="none",
        kind="share",
        higher_is_better=True,
        items=2500,
        paired=True,
        base=base,
        other=other,
        base_stderr=0.0085,
        other_stderr=0.0085,
        difference=other - base,
        interval=between(low, high),
        ratio=None,
        test="exact McNemar",
        p_value=0.4240,
        p_worse=0.2120,
        p_worse_holm=0.4240,
        recovery=100 * other / base,
        recovery_interval=between(99.31, 100.26, "paired bootstrap"),
        chance=None,
        recovery_above_chance=None,
        decides=True,
        verdict="pass",
        reason="the change is −0.16 pp and at worst −0.46 pp, within the margin of 1 pp",
        items_needed=None,
    )
    return replace(made, **more)  # type: ignore[arg-type]


def perplexity(base: float, other: float, low: float, high: float, **more: object) -> MetricComparison:
    """A perplexity, compared as a ratio."""
    made = share("perplexity", base, other, low, high, kind="perplexity", higher_is_better=False)
    rest = {"decides": False, "verdict": None, "reason": None, "test": "paired t", "p_value": 0.00002, "p_worse": 1e-5}
    kept = {"recovery": 100 * base / other, "recovery_interval": None, "p_worse_holm": None, "base_stderr": None}
    return replace(made, ratio=other / base, **(rest | kept | more))  # type: ignore[arg-type]


def task(name: str, *metrics: MetricComparison, flips: Flips | None, **more: object) -> TaskComparison:
    verdict: Verdict = metrics[0].verdict or "inconclusive"
    made = TaskComparison(
        task=name,
        version="1.0",
        num_fewshot=0,
        items=metrics[0].items,
        metrics=metrics,
        flips=flips,
        verdict=verdict,
        note=None,
    )
    return replace(made, **more)  # type: ignore[arg-type]


def side(label: str, **more: object) -> Side:
    made = Side(
        label=label,
        model=f"models/{label}",
        sources=(f"fp8-runs/{label}/run_2026-11-24T12-00-00.json",),
        quantization=None if label == "base" else "FP8_DYNAMIC, compressed-tensors",
        executed_as="unquantized" if label == "base" else "fp8-kernel",
        backend="vllm",
        hardware="NVIDIA H100 80GB HBM3",
        created="2026-11-24T12:00:00Z",
        bytes_on_disk=16_060_522_496 if label == "base" else 9_083_953_152,
        peak_memory_bytes=None,
        peak_gpu_memory_bytes=68_719_476_736 if label == "base" else 61_203_283_968,
        tokens_per_second=21_400.0 if label == "base" else 30_174.0,
        seconds=61.2 if label == "base" else 48.7,
        settings={"lm_eval": "0.4.13", "vllm": "0.32.0", "dtype": "bfloat16", "max length": "4096", "BOS": "yes"},
        notes=(),
    )
    return replace(made, **more)  # type: ignore[arg-type]


def fidelity(scale: float = 1.0, **more: object) -> FidelityComparison:
    """A log-normal bell of KL around 0.0005 × scale."""
    edges = tuple(10 ** (-8 + place / 4) for place in range(33))
    middle = math.log10(0.0005 * scale)
    bell = [round(400 * math.exp(-(((-8 + place / 4 + 0.125) - middle) ** 2))) for place in range(32)]
    made = FidelityComparison(
        exact=True,
        of="tasks",
        positions=2048,
        documents=96,
        kl_mean=0.00143 * scale,
        kl_stderr=0.00009 * scale,
        kl=Quantiles(
            low_1=1e-6 * scale,
            median=0.0005 * scale,
            high_90=0.004 * scale,
            high_95=0.006 * scale,
            high_99=0.0142 * scale,
            high_999=0.04 * scale,
            largest=0.0831 * scale,
        ),
        captured=1.0,
        same_top=0.9663,
        same_top_interval=between(0.9576, 0.9733, "Wilson"),
        delta_p_mean=-0.00012,
        delta_p_rms=0.0123,
        delta_p=Quantiles(
            low_1=-0.03, median=0.0, high_90=0.01, high_95=0.015, high_99=0.03, high_999=0.06, largest=0.09
        ),
        perplexity_base=1.8097,
        perplexity_other=1.8117,
        perplexity_ratio=1.0011,
        perplexity_ratio_interval=between(1.0002, 1.0020, "delta method"),
        histogram_edges=edges,
        histogram_counts=tuple(bell),
    )
    return replace(made, **more)  # type: ignore[arg-type]


CHANGED = (
    ChangedItem(
        task="lambada_openai",
        doc_id=17,
        change="lost",
        prompt="She opened the door and there stood her old friend",
        target=" Anna",
        base_answer=" Anna",
        other_answer=" Maria",
    ),
    ChangedItem(
        task="lambada_openai",
        doc_id=1204,
        change="gained",
        prompt="and at the end of the long road he saw the",
        target=" lighthouse",
        base_answer=" house",
        other_answer=" lighthouse",
    ),
    ChangedItem(
        task="lambada_openai",
        doc_id=3,
        change="answer",
        prompt="The cat sat on the",
        target=" mat",
        base_answer=" sofa",
        other_answer=" chair",
    ),
)


def contest(label: str, *tasks: TaskComparison, **more: object) -> Contest:
    made = Contest(
        other=side(label),
        tasks=tasks,
        total=None,
        fidelity=fidelity(),
        fidelity_missing=None,
        differences=(),
        changed=CHANGED,
        verdict="pass",
        reason="lambada_openai is not worse by more than the margin: −0.16 pp, at worst −0.46 pp",
    )
    return replace(made, **more)  # type: ignore[arg-type]


def comparison(*contests: Contest, **more: object) -> Comparison:
    made = Comparison(
        base=side("base"),
        contests=contests,
        noise=None,
        margin=0.01,
        perplexity_margin=0.01,
        confidence=0.95,
        verdict="pass",
        command="fp8 compare base fp8",
    )
    return replace(made, **more)  # type: ignore[arg-type]


FLIPS = Flips(items=2500, lost=13, gained=9, answers=2500, answers_changed=41)
LAMBADA = task(
    "lambada_openai",
    share("acc", 0.7656, 0.7640, -0.0052, 0.0020),
    perplexity(1.8097, 1.8117, 1.0002, 1.0020),
    flips=FLIPS,
)


def simple() -> Comparison:
    """Two sides, one task, which passes."""
    return comparison(contest("fp8", LAMBADA))


def several() -> Comparison:
    """Three sides and three tasks: one side passes, the other loses on one task and leaves one open; a noise floor."""
    arc = share("acc_norm", 0.5520, 0.5503, -0.0061, 0.0027, items=1172, chance=0.25, recovery_above_chance=99.44)
    gsm = share("exact_match", 0.7710, 0.7687, -0.0073, 0.0027, items=1319, filter="strict-match")
    few = Flips(items=1172, lost=9, gained=7, answers=1172, answers_changed=31)
    total = Total(
        tasks=3,
        items=4991,
        base=0.69620,
        other=0.69433,
        macro_difference=-0.00187,
        macro_interval=between(-0.0044, 0.0007, "normal"),
        micro_difference=-0.00181,
        micro_interval=between(-0.0041, 0.0005, "normal"),
        recovery=99.73,
        flips=Flips(items=4991, lost=38, gained=29, answers=4991, answers_changed=133),
    )
    good = contest(
        "fp8-dynamic",
        LAMBADA,
        task("arc_challenge", arc, flips=few, num_fewshot=25),
        task(
            "gsm8k",
            gsm,
            flips=replace(few, items=1319, answers=1319, lost=16, gained=13, answers_changed=61),
            num_fewshot=5,
        ),
        total=total,
        reason="3 of 3 tasks are not worse by more than the margin",
    )
    worse = share(
        "acc",
        0.7656,
        0.7240,
        -0.0501,
        -0.0331,
        p_value=1e-19,
        p_worse=5e-20,
        p_worse_holm=1.5e-19,
        recovery=94.57,
        recovery_interval=between(93.5, 95.6),
        verdict="regression",
        reason="−4.16 pp, at best −3.31 pp, and the margin is 1 pp",
    )
    open_one = replace(
        arc,
        other=0.5444,
        difference=-0.0076,
        interval=between(-0.0158, 0.0006),
        p_value=0.0755,
        p_worse=0.0378,
        p_worse_holm=0.0755,
        recovery=98.62,
        verdict="inconclusive",
        reason="−0.76 pp, and between −1.58 and +0.06 pp nothing is ruled out: the margin is 1 pp",
        items_needed=3091,
    )
    bad = contest(
        "fp8-block",
        task("lambada_openai", worse, flips=replace(FLIPS, lost=140, gained=36, answers_changed=391)),
        task("arc_challenge", open_one, flips=replace(few, lost=28, gained=19), num_fewshot=25),
        task("gsm8k", gsm, flips=replace(few, items=1319, answers=1319, lost=16, gained=13), num_fewshot=5),
        total=replace(
            total, other=0.679, macro_difference=-0.0172, macro_interval=between(-0.0214, -0.013), recovery=97.53
        ),
        fidelity=fidelity(20.0, exact=False, captured=0.87, same_top=0.913, same_top_interval=between(0.9, 0.9245)),
        differences=(
            Difference(key="dtype", what="dtype of the computation", base="bfloat16", other="float16", allowed=True),
        ),
        not_checked=("tokenizer", "chat template"),
        verdict="regression",
        reason="lambada_openai is worse: −4.16 pp, at best −3.31 pp",
    )
    noise = contest(
        "base~float32",
        replace(LAMBADA, flips=replace(FLIPS, lost=2, gained=3)),
        fidelity=fidelity(0.2, same_top=0.991, same_top_interval=between(0.986, 0.9943)),
        reason="what arithmetic changes",
    )
    return comparison(
        good, bad, noise=noise, verdict="regression", command="fp8 compare base fp8-dynamic fp8-block --noise-floor"
    )


def open_question() -> Comparison:
    """The seed's two tables: plain results without samples, of which nothing is paired."""
    acc = share(
        "acc",
        0.7120,
        0.7160,
        -0.0754,
        0.0834,
        items=250,
        paired=False,
        interval=between(-0.0754, 0.0834, "unpaired normal"),
        test="unpaired z",
        p_value=0.9213,
        p_worse=0.5394,
        p_worse_holm=0.5394,
        recovery_interval=None,
        verdict="inconclusive",
        reason="+0.40 pp, and between −7.54 and +8.34 pp nothing is ruled out: the margin is 1 pp",
        items_needed=25_300,
    )
    plain = {"bytes_on_disk": None, "peak_gpu_memory_bytes": None, "tokens_per_second": None, "seconds": None}
    bare = {"model": None, "quantization": None, "executed_as": None, "backend": "hf", "settings": {}}
    asked = task("gsm8k", acc, flips=None, note="no samples, so nothing is paired; about 250 items by its own error")
    return comparison(
        contest(
            "FP8.md",
            asked,
            other=side("FP8.md", **plain, **bare),
            fidelity=None,
            fidelity_missing="neither side kept log-probabilities",
            changed=(),
            not_checked=("tokenizer", "BOS", "max length"),
            verdict="inconclusive",
            reason=acc.reason,
        ),
        base=side("BF16.md", **plain, **bare),
        verdict="inconclusive",
        command="fp8 compare BF16.md FP8.md",
    )


def only_perplexity() -> Comparison:
    """One task that has no share, with a fidelity that is only a bound."""
    metric = perplexity(
        11.42,
        11.51,
        1.0051,
        1.0107,
        metric="word_perplexity",
        decides=True,
        verdict="inconclusive",
        reason="×1.0079, at worst ×1.0107, and the margin is ×1.01",
        items_needed=402,
        items=62,
        p_worse_holm=1e-5,
    )
    return comparison(
        contest(
            "fp8",
            task("wikitext", metric, flips=None),
            fidelity=fidelity(exact=False, captured=0.87),
            changed=(),
            verdict="inconclusive",
            reason="wikitext: ×1.0079, at worst ×1.0107, and the margin is ×1.01",
        ),
        verdict="inconclusive",
    )


def hostile() -> Comparison:
    """Strangers' texts wherever a text can stand, and numbers that are none."""
    long = f"{HOSTILE}{'é' * 10_000}"
    metric = share(long, math.nan, math.inf, -math.inf, math.inf, filter=HOSTILE, reason=long, verdict="regression")
    item = ChangedItem(
        task=long, doc_id=1, change="lost", prompt=long, target=HOSTILE, base_answer=long, other_answer=HOSTILE
    )
    other = side(
        long,
        model=long,
        settings={long: long, HOSTILE: HOSTILE},
        notes=(long,),
        quantization=HOSTILE,
        executed_as=HOSTILE,
        backend=HOSTILE,
        hardware=long,
    )
    return comparison(
        contest(
            long,
            task(long, metric, perplexity(math.inf, math.nan, math.nan, math.inf), flips=FLIPS, note=long),
            task(HOSTILE, share("acc", 0.5, 0.4, -0.12, -0.08, verdict="regression"), flips=None),
            other=other,
            fidelity=None,
            fidelity_missing=long,
            differences=(Difference(key=HOSTILE, what=long, base=long, other=HOSTILE, allowed=True),),
            changed=(item,) * 1_000,
            not_checked=(long,),
            notes=(long,),
            reason=long,
            verdict="regression",
        ),
        base=replace(other, label=HOSTILE),
        verdict="regression",
        notes=(long,),
        command=f"fp8 compare {HOSTILE} {HOSTILE}",
    )
