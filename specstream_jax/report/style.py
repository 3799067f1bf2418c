# SPDX-License-Identifier: Apache-2.0
"""The style sheet of report.html: light and dark, no outside resources."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --panel: #f4f6f8; --ink: #1d2329; --quiet: #58626d;
  --line: #d5dae0; --accent: #1f5f99; --warn: #9a4a00;
  --run0: #cfe3f7; --run1: #fbdcc0; --run2: #cdebdc; --run3: #e6d8f7;
  --run4: #f8d2d7;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14181c; --panel: #1d2329; --ink: #e3e7eb; --quiet: #a2acb6;
    --line: #38414a; --accent: #7db8ec; --warn: #f0a868;
    --run0: #1f4468; --run1: #6b3d17; --run2: #1d523b; --run3: #4a3470;
    --run4: #66252f;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 74rem; padding: 2rem 1.25rem 4rem;
  background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif;
}
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0 0 .5rem; }
p { margin: .5rem 0; }
.quiet { color: var(--quiet); }
.warn { color: var(--warn); font-weight: 600; }
.cards {
  display: grid; gap: .75rem; margin: 1.25rem 0 .75rem;
  grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr));
}
.cards > div {
  background: var(--panel); border: 1px solid var(--line);
  border-radius: .5rem; padding: .75rem 1rem;
}
.cards dt { color: var(--quiet); font-size: .875rem; }
.cards dd { margin: 0; font-size: .875rem; color: var(--quiet); }
.cards dd.number {
  font-size: 1.75rem; line-height: 1.3; font-weight: 650; color: var(--ink);
  font-variant-numeric: tabular-nums;
}
.cards > div:first-child dd.number { color: var(--accent); }
.scroll {
  overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem;
}
.scroll:focus-visible {
  outline: 2px solid var(--accent); outline-offset: 2px;
}
table { border-collapse: collapse; width: 100%; font-size: .875rem; }
th, td {
  padding: .45rem .5rem; text-align: left; min-width: 5rem;
  overflow-wrap: anywhere; border-bottom: 1px solid var(--line);
}
thead th { background: var(--panel); font-weight: 600; }
tbody tr:last-child > * { border-bottom: 0; }
tbody th { font-weight: 500; }
td.number, th.number {
  min-width: 0; text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums;
}
.plots {
  display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr));
}
figure {
  margin: 0; padding: 1rem; border: 1px solid var(--line);
  border-radius: .5rem; min-width: 0;
}
figure.wide { grid-column: 1 / -1; }
figure svg { display: block; width: 100%; height: auto; color: var(--ink); }
figcaption { margin-top: .5rem; color: var(--quiet); font-size: .875rem; }
article {
  border: 1px solid var(--line); border-radius: .5rem; padding: 1rem;
  margin-bottom: 1rem;
}
article dt { color: var(--quiet); font-size: .875rem; margin-top: .6rem; }
article dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.run {
  background: var(--run0); border-radius: .2rem; padding: .1rem 0;
  -webkit-box-decoration-break: clone; box-decoration-break: clone;
}
.run1 { background: var(--run1); } .run2 { background: var(--run2); }
.run3 { background: var(--run3); } .run4 { background: var(--run4); }
.run u { text-decoration-thickness: 2px; text-underline-offset: 3px; }
.run:hover { outline: 2px solid var(--accent); }
.facts {
  display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.25rem;
}
.facts dt { color: var(--quiet); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
pre {
  background: var(--panel); border: 1px solid var(--line);
  border-radius: .5rem; padding: .75rem 1rem; white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: .875rem;
}
@media print { .scroll { overflow: visible; } article { break-inside: avoid; } }
"""
