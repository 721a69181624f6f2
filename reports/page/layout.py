"""How a page looks: on a desk, on a phone and on paper; nothing is fetched."""

STYLE = """
:root { color-scheme: light; --ink: #1c2733; --soft: #5b6773; --rule: #d9dfe5; --kept: #0B4F7D;
  --removed: #C9DCE9; --paper: #ffffff; --tile: #f3f6f9; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem clamp(.8rem, 3vw, 2.5rem) 3rem; max-width: 1320px;
  font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; border-top: 1px solid var(--rule);
  padding-top: 1.2rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; overflow-wrap: anywhere; }
p { margin: .4rem 0; max-width: 75ch; overflow-wrap: anywhere; }
.soft, figcaption, .hint { color: var(--soft); }
.hint { font-size: .85rem; }
nav a { color: var(--kept); margin-right: 1rem; display: inline-block; padding: .15rem 0; }
.verdict { font-size: 1.1rem; }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0; padding: 0; }
.tiles div { background: var(--tile); border-radius: 8px; padding: .6rem .9rem;
  flex: 1 1 15rem; print-color-adjust: exact; }
.tiles dt { color: var(--soft); font-size: .85rem; }
.tiles dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93rem; }
caption { text-align: left; color: var(--soft); padding-bottom: .3rem; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--rule); text-align: right;
  vertical-align: top; }
td { white-space: nowrap; }
th:first-child { text-align: left; font-weight: normal; min-width: 7.5rem; }
thead th { font-weight: 600; }
.words td { text-align: left; white-space: normal; overflow-wrap: anywhere; max-width: 40rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr));
  gap: 1rem 2rem; }
figure { margin: .8rem 0; min-width: 0; }
figcaption { font-size: .93rem; }
figure img { max-width: 100%; height: auto; display: block; }
figure .live { width: 100%; }
figure.across { overflow-x: auto; }
figure.across .live { min-width: 620px; }
.drawn .static { display: none; }
.layers { columns: 19rem; column-gap: 2.5rem; list-style: none; padding: 0; margin: .6rem 0;
  font-size: .85rem; }
.layers li { display: grid; grid-template-columns: minmax(0, 1fr) 5.5rem 5.6rem; gap: .6rem;
  align-items: center; break-inside: avoid; line-height: 1.45; }
.layers li.first { margin-top: .5rem; }
.layers .head { display: block; font-weight: 600; margin-top: .7rem; break-after: avoid; }
.layers .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.layers .bar { background: var(--removed); border: 1px solid var(--kept); height: .7rem;
  display: block; print-color-adjust: exact; }
.layers .bar span { background: var(--kept); height: 100%; display: block;
  print-color-adjust: exact; }
.layers .count { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
pre { background: var(--tile); border-radius: 8px; padding: .7rem .9rem; overflow-x: auto;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .88rem; }
summary { cursor: pointer; color: var(--kept); }
.vega-embed details summary { opacity: .5 !important; }
@media (max-width: 700px) {
  td { white-space: normal; }
  body { font-size: 15px; }
  table { font-size: .85rem; }
  th, td { padding-right: .5rem; }
  figure.network { display: none; }
}
@media print {
  body { font-size: 10.5pt; max-width: none; padding: 0; }
  nav, .hint, .live { display: none !important; }
  .drawn .static { display: block; }
  figure.network { display: block; }
  h2 { break-after: avoid; }
  h3, figcaption { break-after: avoid; }
  figure, .tiles div, tr { break-inside: avoid; }
  .scroll, figure.across { overflow: visible; }
  .pair { grid-template-columns: repeat(auto-fit, minmax(45%, 1fr)); }
  .layers { columns: 2; font-size: 8.5pt; }
  pre { border: 1px solid var(--rule); }
}
@page { margin: 14mm; }
"""
