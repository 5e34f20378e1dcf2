"""The look of the page. Colours are variables, so curves and tables follow light and dark alike."""

CSS = """
:root { color-scheme: light dark;
  --paper: #fcfcfa; --raised: #ffffff; --ink: #22262b; --muted: #646c76; --line: #e2e3df;
  --fill: #eceeea; --accent: #2465a8;
  --good: #1c6b43; --good-paper: #e0f1e7; --fair: #7a5a06; --fair-paper: #f8efd2;
  --poor: #a03024; --poor-paper: #fae5e1;
  --s1: #2465a8; --s2: #c4631c; --s3: #1d8571; --s4: #8353a8; --s5: #b4364f; --s6: #7f7a1a;
  --s7: #4b8bb8; --s8: #8a6248; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #17191c; --raised: #1f2226; --ink: #e3e5e7; --muted: #9ba3ad; --line: #34383e;
  --fill: #2b2f34; --accent: #7db3ea;
  --good: #8fd6ae; --good-paper: #1d3a2b; --fair: #e6c976; --fair-paper: #3b3318;
  --poor: #f0a295; --poor-paper: #44231e;
  --s1: #7db3ea; --s2: #eda067; --s3: #67c9b4; --s4: #bf9ae0; --s5: #ee8ba0; --s6: #cfc85f;
  --s7: #a9cfe8; --s8: #cfa98e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .75rem; padding-top: 1rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.75rem 0 .5rem; }
p, li, dd { max-width: 46rem; }
p { margin: .5rem 0; }
small { display: block; color: var(--muted); font-size: .82rem; line-height: 1.4; }
code { font: .86em ui-monospace, "Liberation Mono", monospace; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem; color: var(--muted); }
.subtitle, .note, .unit { color: var(--muted); } .note { font-size: .88rem; }
.lead { font-size: 1.15rem; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; margin: 1rem 0; font-size: .92rem; }
a { color: var(--accent); }
.missing { background: var(--fill); border-radius: 6px; padding: .6rem .9rem; font-size: .9rem; }
.missing ul { margin: .25rem 0; padding-left: 1.2rem; }

table { border-collapse: collapse; width: 100%; margin: .75rem 0; font-size: .92rem; }
th { text-align: left; font-weight: 600; color: var(--muted); font-size: .82rem; }
th, td { padding: .5rem .9rem .5rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
.num { text-align: right; font-variant-numeric: tabular-nums; }
th, td, code { overflow-wrap: break-word; }
td code { overflow-wrap: anywhere; }
table.narrow { max-width: 46rem; }
@media (min-width: 44.01rem) { .num, .rival-line, .progress { white-space: nowrap; } }
.rival-line { display: flex; justify-content: space-between; gap: .75rem;
  font-variant-numeric: tabular-nums; }
.rival-line + .control { border-top: 1px solid var(--line); }
.control + .control { border-top: 0; }
.control > :last-child { white-space: nowrap; }
@media (max-width: 44rem) {
  thead { display: none; }
  table, tbody, tr, td { display: block; }
  tr { border-bottom: 1px solid var(--line); padding: .5rem 0; }
  td, td.num { border: 0; padding: .12rem 0; text-align: left; display: flex; gap: .75rem; }
  td::before { content: attr(data-label); flex: 0 0 7rem; color: var(--muted); font-size: .82rem;
    padding-top: .1rem; }
  td:not([data-label])::before { display: none; }
  td > div { flex: 1; min-width: 0; }
}
.badge { font-size: .78rem; font-weight: 600; padding: .1rem .5rem; border-radius: 99px;
  white-space: nowrap; }
.above { color: var(--good); background: var(--good-paper); }
.level { color: var(--fair); background: var(--fair-paper); }
.below, .unseen { color: var(--poor); background: var(--poor-paper); }

.figures { max-width: 46rem; margin: 1rem 0; }
.figure { display: grid; grid-template-columns: 13rem 1fr 4.2rem; gap: .75rem; align-items: center;
  padding: .15rem 0; font-size: .92rem; }
.figure.main { font-weight: 600; }
.bar { display: block; background: var(--fill); height: .7rem; border-radius: 3px;
  min-width: 3rem; }
.bar i { display: block; height: 100%; background: var(--muted); border-radius: 3px; opacity: .6; }
.main .bar i, .share .bar i { background: var(--accent); opacity: 1; }
.value { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.share { display: grid; grid-template-columns: minmax(3rem, 1fr) 4rem; gap: .6rem;
  align-items: center; min-width: 8rem; }
@media (max-width: 30rem) { .figure { grid-template-columns: 8.5rem 1fr 3.8rem; gap: .5rem; } }

.strip { position: relative; display: block; width: 9rem; max-width: 100%; height: .9rem;
  margin: .35rem 0 .2rem; background: var(--fill); border-radius: 3px; }
.strip i { position: absolute; top: 0; bottom: 0; width: 2px; margin-left: -1px; }
.strip .range { width: auto; margin: 0; background: var(--accent); opacity: .35; }
.strip .dot, .key.dot { background: var(--accent); width: 4px; }
.strip .rival, .key.rival { background: var(--s2); }
.strip .chance, .key.chance { background: var(--muted); }
.strip .majority, .key.majority { background: var(--s4); }
.strip .blind, .key.blind { background: var(--s3); }
.key { display: inline-block; width: 3px; height: .8rem; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .84rem; color: var(--muted); }
.legend span { display: inline-flex; align-items: center; gap: .4rem; }
.swatch { width: .9rem; height: .2rem; border-radius: 2px; flex: none; }
.swatch.dashed, .swatch.dotted { height: 0; border-top: 2px dashed var(--muted);
  border-radius: 0; }
.swatch.dotted { border-top-style: dotted; }

.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr));
  gap: 1.5rem 2rem; }
figure { margin: 0; min-width: 0; max-width: 34rem; }
figcaption { display: flex; flex-wrap: wrap; gap: 0 .6rem; font-size: .92rem; }
figcaption .unit { font-size: .84rem; }
figure svg { display: block; width: 100%; height: auto; }
figure svg text { font-family: inherit !important; fill: var(--muted) !important; }

.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr));
  gap: 1rem; margin: 1rem 0; }
.card { display: flex; gap: 1rem; background: var(--raised); border: 1px solid var(--line);
  border-radius: 8px; padding: .9rem; font-size: .9rem; }
.card > div:last-child { flex: 1; min-width: 0; }
.card p { margin: 0 0 .3rem; }
.card.told { margin: 1rem 0; }
.card.told table { margin: .4rem 0 0; }
.card.told td { padding: .2rem .9rem .2rem 0; }
.card.told tr:last-child td { border-bottom: 0; }
.shown { flex: none; width: 88px; }
.shown img { width: 88px; height: 88px; object-fit: contain; background: #fff; border-radius: 4px; }
.no-picture { width: 88px; min-height: 88px; border-radius: 4px; background: var(--fill);
  color: var(--muted); font-size: .75rem; padding: .4rem; }
.prompt { color: var(--muted); }
.names { list-style: none; margin: .2rem 0; padding: 0; }
.names li { position: relative; display: flex; justify-content: space-between; gap: .5rem;
  padding: .05rem .4rem; margin: 2px 0; }
.names li i { position: absolute; inset: 0 auto 0 0; background: var(--fill); border-radius: 3px; }
.names li.gold i { background: var(--good-paper); }
.names span, .names b { position: relative; font-weight: 400; }
.names li.gold span { font-weight: 600; }
.names b { font-variant-numeric: tabular-nums; white-space: nowrap; flex: none; }
h4 { font-size: .92rem; margin: 1rem 0 .4rem; color: var(--muted); }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(28rem, 100%), 1fr));
  gap: 1rem; align-items: start; }
.example { background: var(--raised); border: 1px solid var(--line); border-radius: 8px;
  padding: .8rem; font-size: .9rem; min-width: 0; }
.example p { margin: .2rem 0; }
.text { white-space: pre-wrap; }
.shots { display: grid; grid-template-columns: repeat(auto-fill, minmax(7.5rem, 1fr));
  gap: .5rem; margin: .5rem 0; }
.shot { background: var(--fill); border-radius: 6px; padding: .45rem; font-size: .78rem;
  line-height: 1.35; min-width: 0; }
.shot img { display: block; max-width: 100%; height: 56px; border-radius: 3px;
  margin-bottom: .3rem; background: #fff; object-fit: contain; }
.shot .no-picture, .asked .no-picture { display: block; width: auto; min-height: 0;
  margin-bottom: .3rem; }
.separator { color: var(--muted); font-size: .72rem; margin-left: .3rem; }
.query { display: grid; grid-template-columns: minmax(7rem, 2fr) 3fr; gap: .9rem;
  margin-top: .4rem; }
.asked img { display: block; max-width: 100%; min-height: 88px; max-height: 200px;
  object-fit: contain; border-radius: 4px;
  margin-bottom: .35rem; background: #fff; }
.asked { color: var(--muted); min-width: 0; } .outcome { min-width: 0; }
details { margin: .5rem 0; } summary { cursor: pointer; }
footer { margin-top: 3rem; color: var(--muted); font-size: .88rem; }
"""
