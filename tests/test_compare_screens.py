"""What `fp8 compare` prints, whole: on terminals of 80 and 120 columns, into a pipe, in ASCII, and as Markdown."""

import json
import math
from io import StringIO

import pytest

from fp8cli.core.comparing.comparison import Comparison
from fp8cli.render import measures
from fp8cli.render.comparison import show
from fp8cli.render.comparison_markdown import comparison_to_markdown
from fp8cli.render.console import Channel, Output
from tests import comparisons


def printed(
    made: Comparison, width: int | None = None, *, flips: int = 0, unicode: bool = True, json: bool = False
) -> str:
    """Print a comparison on a terminal `width` cells wide, or into a pipe."""
    paper = StringIO()
    channel = Channel(stream=paper, terminal=width is not None, width=width or 80, color=False, unicode=unicode)
    show(comparisons.report(made), Output(out=channel, err=channel, json=json), flips=flips)
    # A line broken between words keeps the space at its end.
    return "".join(f"{line.rstrip()}\n" for line in paper.getvalue().split("\n")[:-1])


def section(text: str, title: str) -> str:
    """Cut out one section of a screen."""
    found = [part for part in text.split("\n\n") if part.startswith(f"{title}\n")]
    return f"{found[0].rstrip()}\n"


def test_one_task_that_passes_into_a_pipe() -> None:
    assert printed(comparisons.simple()) == (
        """\
✓ PASS  fp8 against base: lambada_openai is not worse by more than the margin: −0.16 pp, at worst −0.46 pp
  judged by: margin 1 pp, ×1.01 for a perplexity, 95 % confidence

fp8 against base
   task                    base     fp8         Δ   95 % interval  verdict
✓  lambada_openai acc ↑  0.7656  0.7640  −0.16 pp  −0.52 to +0.20  pass

evidence
task            items  lost  gained  answers changed  p worse     p  Holm  recovery         interval
lambada_openai  2,500    13       9      41 of 2,500     0.21  0.42  0.42   99.79 %  99.31 to 100.26
metric that does not decide   base    fp8        Δ     95 % interval
lambada_openai perplexity ↓  1.810  1.812  ×1.0011  1.0002 to 1.0020

fidelity
next tokens                       fp8
KL divergence, nats           0.00143
  standard error                 9e-5
  median                       0.0005
  99 %                         0.0142
  largest                      0.0831
same top token                96.63 %
  interval, %          95.76 to 97.33
Δp, next token              −0.012 pp
  root mean square           1.230 pp
perplexity ratio              ×1.0011
  interval, ×        1.0002 to 1.0020
share compared                    all
positions                       2,048
texts                              96
without a noise floor: --noise-floor shows what arithmetic alone changes

costs
                          base               fp8
size on disk          16.06 GB   9.08 GB (×0.57)
GPU memory, peak      68.72 GB  61.20 GB (×0.89)
tokens per second       21,400    30,174 (×1.41)
seconds                   61.2      48.7 (×0.80)
executed as        unquantized        fp8-kernel

next
the same as a page to send to others:
  fp8 compare base fp8 --html compare.html
"""
    )


def test_one_task_with_its_changed_items_on_80_columns() -> None:
    assert printed(comparisons.simple(), 80, flips=3) == (
        """\
✓ PASS  fp8 against base: lambada_openai is not worse by more than the margin:
        −0.16 pp, at worst −0.46 pp
  judged by: margin 1 pp, ×1.01 for a perplexity, 95 % confidence

fp8 against base
╭───┬──────────────────────┬────────┬────────┬──────────┬────────────────╮
│   │ task                 │   base │    fp8 │        Δ │  95 % interval │
├───┼──────────────────────┼────────┼────────┼──────────┼────────────────┤
│ ✓ │ lambada_openai acc ↑ │ 0.7656 │ 0.7640 │ −0.16 pp │ −0.52 to +0.20 │
╰───┴──────────────────────┴────────┴────────┴──────────┴────────────────╯

evidence
╭────────────────┬───────┬──────┬────────┬─────────────────┬──────┬──────────╮
│ task           │ items │ lost │ gained │ answers changed │    p │ recovery │
├────────────────┼───────┼──────┼────────┼─────────────────┼──────┼──────────┤
│ lambada_openai │ 2,500 │   13 │      9 │     41 of 2,500 │ 0.42 │  99.79 % │
╰────────────────┴───────┴──────┴────────┴─────────────────┴──────┴──────────╯
╭─────────────────────────────┬───────┬───────┬─────────┬──────────────────╮
│ metric that does not decide │  base │   fp8 │       Δ │    95 % interval │
├─────────────────────────────┼───────┼───────┼─────────┼──────────────────┤
│ lambada_openai perplexity ↓ │ 1.810 │ 1.812 │ ×1.0011 │ 1.0002 to 1.0020 │
╰─────────────────────────────┴───────┴───────┴─────────┴──────────────────╯

changed items of fp8
╭────────────────┬───────────────────────────┬────────────┬───────┬────────────╮
│ change         │ end of the prompt         │ right      │ base  │ fp8        │
├────────────────┼───────────────────────────┼────────────┼───────┼────────────┤
│ lost           │ She open…d her old friend │ Anna       │ Anna  │ Maria      │
│ gained         │ and at t… road he saw the │ lighthouse │ house │ lighthouse │
│ another answer │ The cat sat on the        │ mat        │ sofa  │ chair      │
╰────────────────┴───────────────────────────┴────────────┴───────┴────────────╯

fidelity
╭─────────────────────┬──────────────────╮
│ next tokens         │              fp8 │
├─────────────────────┼──────────────────┤
│ KL divergence, nats │          0.00143 │
│   standard error    │             9e-5 │
│   median            │           0.0005 │
│   99 %              │           0.0142 │
│   largest           │           0.0831 │
│ same top token      │          96.63 % │
│   interval, %       │   95.76 to 97.33 │
│ Δp, next token      │        −0.012 pp │
│   root mean square  │         1.230 pp │
│ perplexity ratio    │          ×1.0011 │
│   interval, ×       │ 1.0002 to 1.0020 │
│ share compared      │              all │
│ positions           │            2,048 │
│ texts               │               96 │
╰─────────────────────┴──────────────────╯
without a noise floor: --noise-floor shows what arithmetic alone changes

costs
╭───────────────────┬─────────────┬──────────────────╮
│                   │        base │              fp8 │
├───────────────────┼─────────────┼──────────────────┤
│ size on disk      │    16.06 GB │  9.08 GB (×0.57) │
│ GPU memory, peak  │    68.72 GB │ 61.20 GB (×0.89) │
│ tokens per second │      21,400 │   30,174 (×1.41) │
│ seconds           │        61.2 │     48.7 (×0.80) │
│ executed as       │ unquantized │       fp8-kernel │
╰───────────────────┴─────────────┴──────────────────╯

next
the same as a page to send to others:
  fp8 compare base fp8 --html compare.html
"""
    )


def test_three_sides_and_a_noise_floor_on_80_columns() -> None:
    assert printed(comparisons.several(), 80) == (
        """\
✗ REGRESSION  2 against base: fp8-dynamic pass, fp8-block regression
  judged by: margin 1 pp, ×1.01 for a perplexity, 95 % confidence

fp8-dynamic against base
✓ PASS  3 of 3 tasks are not worse by more than the margin
╭───┬───────────────────────────┬────────┬─────────┬──────────┬────────────────╮
│   │ task                      │   base │ fp8…mic │        Δ │  95 % interval │
├───┼───────────────────────────┼────────┼─────────┼──────────┼────────────────┤
│ ✓ │ lambada_openai acc ↑      │ 0.7656 │  0.7640 │ −0.16 pp │ −0.52 to +0.20 │
│ ✓ │ arc_challenge acc_norm ↑  │ 0.5520 │  0.5503 │ −0.17 pp │ −0.61 to +0.27 │
│ ✓ │ gsm8k ex…(strict-match) ↑ │ 0.7710 │  0.7687 │ −0.23 pp │ −0.73 to +0.27 │
├───┼───────────────────────────┼────────┼─────────┼──────────┼────────────────┤
│   │ mean of 3 tasks           │ 0.6962 │  0.6943 │ −0.19 pp │ −0.44 to +0.07 │
╰───┴───────────────────────────┴────────┴─────────┴──────────┴────────────────╯
every item alike: −0.18 pp (−0.41 to +0.05) over 4,991 items
recovery of the mean 99.73 % · 38 lost, 29 gained

evidence
╭────────────────┬───────┬──────┬────────┬─────────────────┬──────┬──────────╮
│ task           │ items │ lost │ gained │ answers changed │    p │ recovery │
├────────────────┼───────┼──────┼────────┼─────────────────┼──────┼──────────┤
│ lambada_openai │ 2,500 │   13 │      9 │     41 of 2,500 │ 0.42 │  99.79 % │
│ arc_challenge  │ 1,172 │    9 │      7 │     31 of 1,172 │ 0.42 │  99.69 % │
│ gsm8k          │ 1,319 │   16 │     13 │     61 of 1,319 │ 0.42 │  99.70 % │
╰────────────────┴───────┴──────┴────────┴─────────────────┴──────┴──────────╯
╭─────────────────────────────┬───────┬─────────┬─────────┬──────────────────╮
│ metric that does not decide │  base │ fp8…mic │       Δ │    95 % interval │
├─────────────────────────────┼───────┼─────────┼─────────┼──────────────────┤
│ lambada_openai perplexity ↓ │ 1.810 │   1.812 │ ×1.0011 │ 1.0002 to 1.0020 │
╰─────────────────────────────┴───────┴─────────┴─────────┴──────────────────╯

fp8-block against base
✗ REGRESSION  lambada_openai is worse: −4.16 pp, at best −3.31 pp
╭───┬───────────────────────────┬────────┬─────────┬──────────┬────────────────╮
│   │ task                      │   base │ fp8…ock │        Δ │  95 % interval │
├───┼───────────────────────────┼────────┼─────────┼──────────┼────────────────┤
│ ✗ │ lambada_openai acc ↑      │ 0.7656 │  0.7240 │ −4.16 pp │ −5.01 to −3.31 │
│ ! │ arc_challenge acc_norm ↑  │ 0.5520 │  0.5444 │ −0.76 pp │ −1.58 to +0.06 │
│ ✓ │ gsm8k ex…(strict-match) ↑ │ 0.7710 │  0.7687 │ −0.23 pp │ −0.73 to +0.27 │
├───┼───────────────────────────┼────────┼─────────┼──────────┼────────────────┤
│   │ mean of 3 tasks           │ 0.6962 │  0.6790 │ −1.72 pp │ −2.14 to −1.30 │
╰───┴───────────────────────────┴────────┴─────────┴──────────┴────────────────╯
every item alike: −0.18 pp (−0.41 to +0.05) over 4,991 items
recovery of the mean 97.53 % · 38 lost, 29 gained
✗ regression  lambada_openai: −4.16 pp, at best −3.31 pp, and the margin is 1 pp
! inconclusive  arc_challenge: −0.76 pp, and between −1.58 and +0.06 pp nothing
                is ruled out: the margin is 1 pp

evidence
╭────────────────┬───────┬──────┬────────┬─────────┬──────────╮
│ task           │ items │ lost │ gained │       p │ recovery │
├────────────────┼───────┼──────┼────────┼─────────┼──────────┤
│ lambada_openai │ 2,500 │  140 │     36 │ <0.0001 │  94.57 % │
│ arc_challenge  │ 1,172 │   28 │     19 │  0.0755 │  98.62 % │
│ gsm8k          │ 1,319 │   16 │     13 │    0.42 │  99.70 % │
╰────────────────┴───────┴──────┴────────┴─────────┴──────────╯

fidelity
╭─────────────────────┬──────────────────┬──────────────────┬──────────────────╮
│ next tokens         │      fp8-dynamic │        fp8-block │      noise floor │
├─────────────────────┼──────────────────┼──────────────────┼──────────────────┤
│ KL divergence, nats │          0.00143 │         ≥ 0.0286 │         0.000286 │
│   standard error    │             9e-5 │           0.0018 │           1.8e-5 │
│   median            │           0.0005 │           ≥ 0.01 │           0.0001 │
│   99 %              │           0.0142 │          ≥ 0.284 │          0.00284 │
│   largest           │           0.0831 │           ≥ 1.66 │           0.0166 │
│ same top token      │          96.63 % │          91.30 % │          99.10 % │
│   interval, %       │   95.76 to 97.33 │   90.00 to 92.45 │   98.60 to 99.43 │
│ Δp, next token      │        −0.012 pp │        −0.012 pp │        −0.012 pp │
│   root mean square  │         1.230 pp │         1.230 pp │         1.230 pp │
│ perplexity ratio    │          ×1.0011 │          ×1.0011 │          ×1.0011 │
│   interval, ×       │ 1.0002 to 1.0020 │ 1.0002 to 1.0020 │ 1.0002 to 1.0020 │
│ share compared      │              all │           87.0 % │              all │
│ positions           │            2,048 │            2,048 │            2,048 │
│ texts               │               96 │               96 │               96 │
╰─────────────────────┴──────────────────┴──────────────────┴──────────────────╯
fp8-block: ≥ marks a lower bound, from the most likely tokens of both sides only
noise floor: base against itself in other arithmetic, without any quantization
it alone: 2 lost, 3 gained, 41 answers changed of 2,500 items

costs
╭───────────────────┬─────────────┬──────────────────┬──────────────────╮
│                   │        base │      fp8-dynamic │        fp8-block │
├───────────────────┼─────────────┼──────────────────┼──────────────────┤
│ size on disk      │    16.06 GB │  9.08 GB (×0.57) │  9.08 GB (×0.57) │
│ GPU memory, peak  │    68.72 GB │ 61.20 GB (×0.89) │ 61.20 GB (×0.89) │
│ tokens per second │      21,400 │   30,174 (×1.41) │   30,174 (×1.41) │
│ seconds           │        61.2 │     48.7 (×0.80) │     48.7 (×0.80) │
│ executed as       │ unquantized │       fp8-kernel │       fp8-kernel │
╰───────────────────┴─────────────┴──────────────────┴──────────────────╯

what differs: fp8-block
╭─────────┬──────────┬───────────╮
│ differs │ base     │ fp8-block │
├─────────┼──────────┼───────────┤
│ dtype   │ bfloat16 │ float16   │
╰─────────┴──────────┴───────────╯
not checked, for one of the two does not say it: tokenizer, chat template

next
which weights are to blame:
  fp8 inspect models/fp8-block --against models/base
which items changed:
  fp8 compare base fp8-dynamic fp8-block --noise-floor --show-flips 20
"""
    )


def test_120_columns_have_room_for_the_verdicts_and_all_the_evidence() -> None:
    wide = printed(comparisons.several(), 120)
    assert section(wide, "fp8-dynamic against base") == (
        """\
fp8-dynamic against base
✓ PASS  3 of 3 tasks are not worse by more than the margin
╭───┬────────────────────────────────────┬────────┬─────────┬──────────┬────────────────┬─────────╮
│   │ task                               │   base │ fp8…mic │        Δ │  95 % interval │ verdict │
├───┼────────────────────────────────────┼────────┼─────────┼──────────┼────────────────┼─────────┤
│ ✓ │ lambada_openai acc ↑               │ 0.7656 │  0.7640 │ −0.16 pp │ −0.52 to +0.20 │ pass    │
│ ✓ │ arc_challenge acc_norm ↑           │ 0.5520 │  0.5503 │ −0.17 pp │ −0.61 to +0.27 │ pass    │
│ ✓ │ gsm8k exact_match (strict-match) ↑ │ 0.7710 │  0.7687 │ −0.23 pp │ −0.73 to +0.27 │ pass    │
├───┼────────────────────────────────────┼────────┼─────────┼──────────┼────────────────┼─────────┤
│   │ mean of 3 tasks                    │ 0.6962 │  0.6943 │ −0.19 pp │ −0.44 to +0.07 │         │
╰───┴────────────────────────────────────┴────────┴─────────┴──────────┴────────────────┴─────────╯
every item alike: −0.18 pp (−0.41 to +0.05) over 4,991 items
recovery of the mean 99.73 % · 38 lost, 29 gained
"""
    )
    assert section(wide, "evidence") == (
        """\
evidence
╭────────────────┬───────┬──────┬────────┬─────────────────┬─────────┬──────┬──────┬──────────┬──────────────╮
│ task           │ items │ lost │ gained │ answers changed │ p worse │    p │ Holm │ recovery │ above chance │
├────────────────┼───────┼──────┼────────┼─────────────────┼─────────┼──────┼──────┼──────────┼──────────────┤
│ lambada_openai │ 2,500 │   13 │      9 │     41 of 2,500 │    0.21 │ 0.42 │ 0.42 │  99.79 % │            - │
│ arc_challenge  │ 1,172 │    9 │      7 │     31 of 1,172 │    0.21 │ 0.42 │ 0.42 │  99.69 % │      99.44 % │
│ gsm8k          │ 1,319 │   16 │     13 │     61 of 1,319 │    0.21 │ 0.42 │ 0.42 │  99.70 % │            - │
╰────────────────┴───────┴──────┴────────┴─────────────────┴─────────┴──────┴──────┴──────────┴──────────────╯
╭─────────────────────────────┬───────┬─────────┬─────────┬──────────────────╮
│ metric that does not decide │  base │ fp8…mic │       Δ │    95 % interval │
├─────────────────────────────┼───────┼─────────┼─────────┼──────────────────┤
│ lambada_openai perplexity ↓ │ 1.810 │   1.812 │ ×1.0011 │ 1.0002 to 1.0020 │
╰─────────────────────────────┴───────┴─────────┴─────────┴──────────────────╯
"""
    )


def test_plain_results_without_samples_on_80_columns() -> None:
    assert printed(comparisons.open_question(), 80) == (
        """\
! INCONCLUSIVE  FP8.md against BF16.md: +0.40 pp, and between −7.54 and +8.34 pp
                nothing is ruled out: the margin is 1 pp
  judged by: margin 1 pp, ×1.01 for a perplexity, 95 % confidence

FP8.md against BF16.md
╭───┬─────────────┬─────────┬────────┬──────────┬────────────────╮
│   │ task        │ BF16.md │ FP8.md │        Δ │  95 % interval │
├───┼─────────────┼─────────┼────────┼──────────┼────────────────┤
│ ! │ gsm8k acc ↑ │  0.7120 │ 0.7160 │ +0.40 pp │ −7.54 to +8.34 │
╰───┴─────────────┴─────────┴────────┴──────────┴────────────────╯
gsm8k: no samples, so nothing is paired; about 250 items by its own error

evidence
╭───────┬───────┬─────────┬──────┬──────┬──────────╮
│ task  │ items │ p worse │    p │ Holm │ recovery │
├───────┼───────┼─────────┼──────┼──────┼──────────┤
│ gsm8k │   250 │    0.54 │ 0.92 │ 0.54 │ 100.56 % │
╰───────┴───────┴─────────┴──────┴──────┴──────────╯

fidelity
FP8.md: not measured, for neither side kept log-probabilities

what differs, or is not known
not checked, for one of the two does not say it: tokenizer, BOS, max length

next
about 25,300 items of each open task would settle it, at the rate seen here
"""
    )


def test_a_perplexity_and_a_bound_in_ascii() -> None:
    text = printed(comparisons.only_perplexity(), unicode=False)
    assert text.isascii()
    assert text == (
        """\
! INCONCLUSIVE  fp8 against base: wikitext: x1.0079, at worst x1.0107, and the margin is x1.01
  judged by: margin 1 pp, x1.01 for a perplexity, 95 % confidence

fp8 against base
   task                         base    fp8   change     95 % interval  verdict
!  wikitext word_perplexity v  11.42  11.51  x1.0079  1.0051 to 1.0107  inconclusive

evidence
task      items  p worse        p     Holm  recovery
wikitext     62  <0.0001  <0.0001  <0.0001   99.22 %

fidelity
next tokens                       fp8
KL divergence, nats        >= 0.00143
  standard error                 9e-5
  median                    >= 0.0005
  99 %                      >= 0.0142
  largest                   >= 0.0831
same top token                96.63 %
  interval, %          95.76 to 97.33
changep, next token         -0.012 pp
  root mean square           1.230 pp
perplexity ratio              x1.0011
  interval, x        1.0002 to 1.0020
share compared                 87.0 %
positions                       2,048
texts                              96
fp8: >= marks a lower bound, from the most likely tokens of both sides only
without a noise floor: --noise-floor shows what arithmetic alone changes

costs
                          base               fp8
size on disk          16.06 GB   9.08 GB (x0.57)
GPU memory, peak      68.72 GB  61.20 GB (x0.89)
tokens per second       21,400    30,174 (x1.41)
seconds                   61.2      48.7 (x0.80)
executed as        unquantized        fp8-kernel

next
about 402 items of each open task would settle it, at the rate seen here:
  fp8 compare base fp8 --sample 402
"""
    )


def test_a_comparison_as_markdown() -> None:
    assert comparison_to_markdown(comparisons.several()) == (
        """\
## Evaluation: fp8-dynamic against base

**✓ PASS** 3 of 3 tasks are not worse by more than the margin

| task | metric | shots | items | base | fp8-dynamic | recovery | Δ | 95 % interval | verdict |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |
| lambada\\_openai | acc ↑ | 0 | 2,500 | 0.7656 | 0.7640 | 99.79 % | −0.16 pp | −0.52 to +0.20 | pass |
| lambada\\_openai | perplexity ↓ | 0 | 2,500 | 1.810 | 1.812 | 99.89 % | ×1.0011 | 1.0002 to 1.0020 |  |
| arc\\_challenge | acc\\_norm ↑ | 25 | 1,172 | 0.5520 | 0.5503 | 99.69 % | −0.17 pp | −0.61 to +0.27 | pass |
| gsm8k | exact\\_match (strict-match) ↑ | 5 | 1,319 | 0.7710 | 0.7687 | 99.70 % | −0.23 pp | −0.73 to +0.27 | pass |
| **mean of 3 tasks** |  |  | **4,991** | **0.6962** | **0.6943** | **99.73 %** | **−0.19 pp** | **−0.44 to +0.07** | **pass** |

every item alike: −0.18 pp (−0.41 to +0.05) over 4,991 items

recovery of the mean 99.73 % · 38 lost, 29 gained

Judged by: margin 1 pp, ×1.01 for a perplexity, 95 % confidence.

## Evaluation: fp8-block against base

**✗ REGRESSION** lambada\\_openai is worse: −4.16 pp, at best −3.31 pp

| task | metric | shots | items | base | fp8-block | recovery | Δ | 95 % interval | verdict |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |
| lambada\\_openai | acc ↑ | 0 | 2,500 | 0.7656 | 0.7240 | 94.57 % | −4.16 pp | −5.01 to −3.31 | regression |
| arc\\_challenge | acc\\_norm ↑ | 25 | 1,172 | 0.5520 | 0.5444 | 98.62 % | −0.76 pp | −1.58 to +0.06 | inconclusive |
| gsm8k | exact\\_match (strict-match) ↑ | 5 | 1,319 | 0.7710 | 0.7687 | 99.70 % | −0.23 pp | −0.73 to +0.27 | pass |
| **mean of 3 tasks** |  |  | **4,991** | **0.6962** | **0.6790** | **97.53 %** | **−1.72 pp** | **−2.14 to −1.30** | **regression** |

every item alike: −0.18 pp (−0.41 to +0.05) over 4,991 items

recovery of the mean 97.53 % · 38 lost, 29 gained

**✗ regression** lambada\\_openai: −4.16 pp, at best −3.31 pp, and the margin is 1 pp

**! inconclusive** arc\\_challenge: −0.76 pp, and between −1.58 and +0.06 pp nothing is ruled out: the margin is 1 pp

## Fidelity

| next tokens | fp8-dynamic | fp8-block | noise floor |
| --- | ---: | ---: | ---: |
| KL divergence, nats | 0.00143 | ≥ 0.0286 | 0.000286 |
|   standard error | 9e-5 | 0.0018 | 1.8e-5 |
|   median | 0.0005 | ≥ 0.01 | 0.0001 |
|   99 % | 0.0142 | ≥ 0.284 | 0.00284 |
|   largest | 0.0831 | ≥ 1.66 | 0.0166 |
| same top token | 96.63 % | 91.30 % | 99.10 % |
|   interval, % | 95.76 to 97.33 | 90.00 to 92.45 | 98.60 to 99.43 |
| Δp, next token | −0.012 pp | −0.012 pp | −0.012 pp |
|   root mean square | 1.230 pp | 1.230 pp | 1.230 pp |
| perplexity ratio | ×1.0011 | ×1.0011 | ×1.0011 |
|   interval, × | 1.0002 to 1.0020 | 1.0002 to 1.0020 | 1.0002 to 1.0020 |
| share compared | all | 87.0 % | all |
| positions | 2,048 | 2,048 | 2,048 |
| texts | 96 | 96 | 96 |

fp8-block: ≥ marks a lower bound, from the most likely tokens of both sides only

noise floor: base against itself in other arithmetic, without any quantization

it alone: 2 lost, 3 gained, 41 answers changed of 2,500 items

## Costs

|  | base | fp8-dynamic | fp8-block |
| --- | ---: | ---: | ---: |
| size on disk | 16.06 GB | 9.08 GB (×0.57) | 9.08 GB (×0.57) |
| GPU memory, peak | 68.72 GB | 61.20 GB (×0.89) | 61.20 GB (×0.89) |
| tokens per second | 21,400 | 30,174 (×1.41) | 30,174 (×1.41) |
| seconds | 61.2 | 48.7 (×0.80) | 48.7 (×0.80) |
| executed as | unquantized | fp8-kernel | fp8-kernel |

## How it was measured

|  | base | fp8-dynamic | fp8-block |
| --- | --- | --- | --- |
| model | models/base | models/fp8-dynamic | models/fp8-block |
| quantization | - | FP8\\_DYNAMIC, compressed-tensors | FP8\\_DYNAMIC, compressed-tensors |
| executed as | unquantized | fp8-kernel | fp8-kernel |
| backend | vllm | vllm | vllm |
| hardware | NVIDIA H100 80GB HBM3 | NVIDIA H100 80GB HBM3 | NVIDIA H100 80GB HBM3 |
| measured | 2026-11-24T12:00:00Z | 2026-11-24T12:00:00Z | 2026-11-24T12:00:00Z |
| lm\\_eval | 0.4.13 | 0.4.13 | 0.4.13 |
| vllm | 0.32.0 | 0.32.0 | 0.32.0 |
| dtype | bfloat16 | bfloat16 | bfloat16 |
| max length | 4096 | 4096 | 4096 |
| BOS | yes | yes | yes |

Differences that were allowed, fp8-block:

| differs | base | fp8-block |
| --- | --- | --- |
| dtype | bfloat16 | float16 |

not checked, for one of the two does not say it: tokenizer, chat template

```bash
fp8 compare base fp8-dynamic fp8-block --noise-floor
```

fp8 0.1.0

"""  # noqa: E501 - a line of the document
    )


def test_more_changed_items_than_asked_for_are_counted() -> None:
    assert section(printed(comparisons.simple(), flips=2), "changed items of fp8") == (
        """\
changed items of fp8
task             item  change  end of the prompt                                   right       base   fp8
lambada_openai     17  lost    She opened the door and there stood her old friend  Anna        Anna   Maria
lambada_openai  1,204  gained  and at the end of the long road he saw the          lighthouse  house  lighthouse
1 more; --show-flips 3 lists them
"""
    )


def test_every_task_gets_its_share_of_the_changed_items() -> None:
    items = tuple(
        comparisons.ChangedItem(
            task=task, doc_id=number, change="lost", prompt="", target="", base_answer="", other_answer=""
        )
        for task, many in (("long", 50), ("short", 2))
        for number in range(many)
    )
    shown = measures.listed(items, 6)
    assert [(item.task, item.doc_id) for item in shown] == [
        *(("long", number) for number in range(4)),
        *(("short", number) for number in range(2)),
    ]
    assert measures.listed((), 6) == ()


def test_the_document_has_all_that_the_screen_has() -> None:
    document = json.loads(printed(comparisons.several(), json=True))
    assert (document["command"], document["ok"], document["exit_code"]) == ("compare", False, 1)
    found = document["result"]["comparison"]
    assert [contest["verdict"] for contest in found["contests"]] == ["pass", "regression"]
    assert len(found["contests"][0]["changed"]) == 3


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("name", ["simple", "several", "open_question", "only_perplexity"])
def test_no_line_is_wider_than_its_terminal(name: str, width: int) -> None:
    text = printed(getattr(comparisons, name)(), width, flips=3)
    # A narrower box could not keep its numbers whole; a command is never broken.
    if width >= 80:
        assert max(len(line) for line in text.split("\n") if not line.startswith("  fp8 ")) <= width
    assert "0.7656" in text or "0.7120" in text or "11.42" in text


@pytest.mark.parametrize("width", [None, 80])
def test_hostile_texts_are_harmless_and_short_on_a_screen(width: int | None) -> None:
    text = printed(comparisons.hostile(), width, flips=5)
    assert all(ch.isprintable() or ch == "\n" for ch in text)
    assert len(text) < 50_000
    assert "\\x1b[31m[bold]\\n\\u202e" in text


def test_hostile_texts_are_harmless_in_markdown() -> None:
    text = comparison_to_markdown(comparisons.hostile())
    assert len(text) < 40_000
    assert all(ch.isprintable() or ch == "\n" for ch in text)
    prose = "\n".join(part for number, part in enumerate(text.split("```")) if number % 2 == 0)
    assert "<script" not in prose.replace("\\<script", "")
    # As many cells in every row of a table as there are columns.
    for table in (part.split("\n") for part in prose.split("\n\n") if part.startswith("|")):
        assert len({row.replace("\\|", "").count("|") for row in table if row}) == 1


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (None, "-"),
        (0.0, "<0.0001"),
        (9.99e-5, "<0.0001"),
        (1e-4, "0.0001"),
        (0.0132, "0.0132"),
        (0.267, "0.27"),
        (1, "1.00"),
    ],
)
def test_no_p_value_is_nothing(p: float | None, text: str) -> None:
    assert measures.probability(p) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0.00"),
        (-0.00001, "0.00"),
        (0.004, "+0.40"),
        (-0.0016, "−0.16"),
        (math.inf, "+inf"),
        (-math.inf, "−inf"),
        (math.nan, "+nan"),
    ],
)
def test_points_have_a_sign_and_a_real_minus(number: float, text: str) -> None:
    assert measures.points(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(1.8097, "1.810"), (43.8649, "43.86"), (0.00051, "0.00051"), (1234.5, "1234"), (3.2e7, "3.2e+07"), (0, "0")],
)
def test_values_have_four_digits(number: float, text: str) -> None:
    assert measures.four_digits(number) == text


def test_the_next_step_draws_another_sample_and_asks_for_none_that_cannot_be_run() -> None:
    made = comparisons.only_perplexity()
    for options in ("", " --sample 62", " --limit=62", " --limit 62"):
        text = printed(comparisons.replace(made, command=f"fp8 compare base 'my fp8'{options} --allow dtype"))
        assert "  fp8 compare base 'my fp8' --allow dtype --sample 402\n" in text
    assert "--sample" not in printed(comparisons.open_question())


def test_a_task_of_which_nothing_decides_is_still_shown() -> None:
    bare = comparisons.share("bleu", 31.2, 31.1, 0, 0, kind="other", interval=None, decides=False, verdict=None)
    task = comparisons.task("translate", bare, flips=None, verdict="inconclusive")
    text = printed(comparisons.comparison(comparisons.contest("fp8", task)))
    assert "!  translate bleu ↑  31.20  31.10  −0.1000" in text
