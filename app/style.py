"""The style sheet for what Streamlit does not draw itself, for light and dark grounds alike. `app.document` serves it."""

from __future__ import annotations

SHEET = """\
.block-container {max-width: 82rem}
[data-testid="stCaptionContainer"], [data-testid="stCaptionContainer"] :is(p, em, strong, li) {color: inherit}
[data-testid="stCaptionContainer"] {opacity: .8}
h1 {letter-spacing: -.02em}
[data-testid="stHeading"] h1 {font-size: 2.2rem}
[data-testid="stHeading"] h2 {font-size: 1.5rem; letter-spacing: -.01em}
[data-testid="stHeading"] h3 {font-size: 1.15rem}
.lead {font-size: 1.06rem; line-height: 1.55; max-width: 52rem; margin: 0 0 .6rem}
.card {border-top: 3px solid var(--hue); padding: .7rem 0 .2rem}
.card h3 {margin: 0; padding: 0; font-size: 1rem; font-weight: 650; letter-spacing: 0}
.card .about {margin: 0 0 .8rem; font-size: .82rem; opacity: .8}
.card .text {white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.55; min-height: 7.75em; margin: 0 0 .9rem}
.card .given {opacity: .75}
.card .new {font-weight: 500; box-shadow: inset 0 -.42em 0 color-mix(in srgb, var(--hue) 22%, transparent)}
.card .cursor {display: inline-block; width: .5em; height: 1em; vertical-align: -.15em; background: var(--hue); opacity: .7}
.card .score {font-size: 1.9rem; font-weight: 600; line-height: 1.1; font-variant-numeric: tabular-nums}
.card .unit {font-size: .82rem; opacity: .8; margin-bottom: .9rem}
.bars {width: 100%; border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; border: 0}
.bars caption {text-align: left; font-size: .82rem; opacity: .8; padding-bottom: .25rem; caption-side: top}
.bars td, .bars th {padding: .16rem 0; border: 0; font-weight: 400; text-align: left; white-space: pre}
.bars th {max-width: 11em; overflow: hidden; text-overflow: ellipsis; padding-right: .6rem}
.bars td.bar {width: 60%}
.bars td.bar span {display: block; height: .62rem; border-radius: 2px; background: var(--hue); opacity: .78}
.bars td.number {text-align: right; padding-left: .6rem; width: 4em}
.strip {line-height: 2; overflow-wrap: anywhere; margin: 0 0 .5rem}
.strip span {padding: .12em .08em; margin-right: 1px; border-radius: 3px;
  background: color-mix(in srgb, var(--hue) var(--share), transparent)}
.facts {display: flex; flex-wrap: wrap; gap: .4rem 2.2rem; margin: 0 0 1rem; padding: 0}
.facts div {margin: 0}
.facts dt {font-size: .82rem; opacity: .8; font-weight: 400; margin: 0}
.facts dd {margin: 0; font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums}
.facts dd small {font-size: .82rem; font-weight: 400; opacity: .8; margin-left: .4em}
.role {font-weight: 600; box-shadow: inset 0 -.4em 0 color-mix(in srgb, var(--hue) 30%, transparent)}
.verdict {line-height: 1.55; max-width: 60rem; margin: .2rem 0 .9rem; border-left: 4px solid #858b94; padding-left: .8rem}
.verdict.holds {border-left: 4px solid #119a86}
.verdict.fails {border-left: 4px double #b5503c}
.verdict.inconclusive {border-left: 4px dotted #858b94}
.verdict.applicable {border-left: 1px solid #858b94}
.effects {border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: 0 0 1rem; width: 100%; max-width: 60rem}
.effects th, .effects td {text-align: left; font-weight: 400; padding: .3rem 1rem .3rem 0; border: 0;
  border-bottom: 1px solid rgba(128,134,145,.25); vertical-align: middle}
.effects thead th, .effects .key {font-size: .82rem; opacity: .8; white-space: nowrap}
.effects td.line {width: 24%; min-width: 6rem; padding-right: 0}
.effects .line span {position: relative; display: block; height: 1rem;
  border-bottom: 1px solid rgba(128,134,145,.4); transform: translateY(-.5rem)}
.effects .line i {position: absolute; bottom: 0}
.effects .line .span {height: 5px; transform: translateY(2.5px); border-radius: 3px; background: rgba(217,115,13,.4)}
.effects .line .null {height: .95rem; border-left: 2px solid #858b94; transform: translate(-1px, .45rem)}
.effects .line .value {width: 9px; height: 9px; border-radius: 50%; background: #d9730d; transform: translate(-4.5px, 5px)}
.why {display: grid; grid-template-columns: 10.5rem 1fr; gap: .35rem 1rem; max-width: 62rem; font-size: .92rem; line-height: 1.5;
  margin: 0 0 1rem}
.why dt {opacity: .8; font-weight: 400; overflow-wrap: anywhere} .why dd {margin: 0}
.claims {display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); gap: 1.3rem 2rem}
.claims article {border-top: 1px solid rgba(128,134,145,.45); padding-top: .6rem; font-size: .92rem; line-height: 1.5}
.claims h3 {font-size: 1rem; font-weight: 650; padding: 0; margin: 0; letter-spacing: 0}
.claims p {margin: .3rem 0} .claims .id {font-size: .82rem; opacity: .8}
.running {min-height: 3rem; line-height: 1.5; max-width: 60rem; margin: .2rem 0 .4rem}
dl.facts, dl.why {padding: 0 !important}
@media (max-width: 640px) {.why {grid-template-columns: 1fr} .why dd {margin-bottom: .5rem} .effects td.line, .effects .key {display: none}}
.step {margin: 1.1rem 0 .3rem; padding: 0; font-size: 1.2rem; font-weight: 650; line-height: 1.3; letter-spacing: 0}
.step span {opacity: .65; margin-right: .25em; font-variant-numeric: tabular-nums}
@media (max-width: 640px) {.st-key-map .textpoint, .st-key-guess .textpoint, .st-key-estimate .textpoint {display: none}}
/* On a dark ground the accent is light, so that it is read as text; what is written on it is then dark. */
:is([data-testid="stBaseButton-primary"], [data-testid="stBaseButton-primaryFormSubmit"]) :is(p, span),
[data-testid="stMultiSelect"] span[title], [data-testid="stMultiSelect"] span[title] ~ * {color: light-dark(#fff, #14171c)}"""
