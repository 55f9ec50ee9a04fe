// Draws the plots of a comparison: one line or bar for each scenario. Text only ever goes in as text.
"use strict";
(() => {
  const { scenarios } = JSON.parse(document.getElementById("data").textContent);
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const hue = (at) => `--c${(at % 8) + 1}`;
  const dash = (at) => (at < 8 ? undefined : [6, 4]);
  const drawn = [];

  const percent = (share) => (share == null ? "–" : `${Math.round(share * 100)} %`);
  const count = (n) => (n == null ? "–" : n >= 1e6 ? `${(n / 1e6).toFixed(1)}M` : n >= 1e4 ? `${(n / 1e3).toFixed(1)}k` : `${Math.round(n * 10) / 10}`);
  const seconds = (s) => (s == null ? "–" : s < 1 ? `${Math.round(s * 1000)} ms` : s < 120 ? `${Math.round(s * 10) / 10} s` : `${Math.round(s / 6) / 10} min`);
  const clock = (s) => (s < 60 ? `${Math.round(s)} s` : s < 36000 ? `${Math.round(s / 60)} min` : `${Math.round(s / 360) / 10} h`);

  const steps = [1, 5, 10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800, 604800];
  const axis = (more) => ({
    stroke: () => color("--muted"), font: "12px system-ui, sans-serif",
    grid: { stroke: () => color("--line"), width: 1 }, ticks: { show: false }, ...more,
  });

  function plot(id, options, columns) {
    const holder = document.querySelector(`#${id} .plot`);
    if (!columns[0].length) {
      holder.classList.add("none");
      holder.textContent = "nothing to show";
      return;
    }
    const size = () => ({ width: Math.max(200, holder.clientWidth), height: options.height || 220 });
    const made = new uPlot({ ...size(), cursor: { points: { size: 6 } }, padding: [12, 24, 0, 0], ...options }, columns, holder);
    drawn.push(made);
    new ResizeObserver(() => made.setSize(size())).observe(holder);
  }

  // Scenarios end at different times, and look at different instants: a line has gaps where it has no value.
  function lines(id, of, format, options) {
    const tables = scenarios.map((each) => [each.at_s, of(each)]).filter(([xs, ys]) => xs.length && ys.length);
    const columns = tables.length ? uPlot.join(tables) : [[]];
    const known = scenarios.filter((each) => each.at_s.length && of(each).length);
    plot(id, {
      ...options,
      scales: { x: { time: false }, y: { range: (_, min, max) => [0, Math.max(options.least, (max || 0) * 1.06)] } },
      axes: [axis({ values: (_, ticks) => ticks.map(clock), incrs: steps, space: 70, size: 34 }), axis({ values: (_, ticks) => ticks.map(format), size: 62 })],
      series: [{ label: "at", value: (_, s) => (s == null ? "–" : clock(s)) }, ...known.map((each, i) => ({
        label: each.name, stroke: () => color(hue(scenarios.indexOf(each))), dash: dash(scenarios.indexOf(each)), width: 1.6,
        points: { show: false }, spanGaps: true, value: (_, v) => format(v),
      }))],
    }, columns);
  }

  function waits(id, of) {
    const known = scenarios.filter((each) => of(each).length);
    const least = 0.01;
    plot(id, {
      scales: { x: { time: false, range: [0, 100] }, y: { distr: 3, range: (_, min, max) => [least, Math.max(1, max || 1)] } },
      axes: [axis({ values: (_, ticks) => ticks.map((each) => `${each} %`), size: 34 }), axis({ values: (_, ticks) => ticks.map((each) => (each == null ? "" : seconds(each))), size: 70 })],
      series: [{ label: "calls", value: (_, v) => (v == null ? "–" : `${v} %`) }, ...known.map((each) => ({
        label: each.name, stroke: () => color(hue(scenarios.indexOf(each))), dash: dash(scenarios.indexOf(each)), width: 1.6,
        points: { show: false }, value: (_, v) => (v == null ? "–" : v <= least ? "no wait" : seconds(v)),
      }))],
    }, known.length ? [of(known[0]).map((_, i) => i), ...known.map((each) => of(each).map((v) => Math.max(v, least)))] : [[]]);
  }

  function bars(id, names, values, format) {
    const groups = names.length;
    const paths = (at) => uPlot.paths.bars({ size: [0.8 / groups, 90], align: groups === 1 ? 0 : at ? 1 : -1 });
    plot(id, {
      scales: { x: { time: false, range: [-0.6, scenarios.length - 0.4] }, y: { range: (_, min, max) => [0, (max || 1) * 1.08] } },
      axes: [
        axis({ splits: scenarios.map((_, i) => i), values: (_, ticks) => ticks.map((i) => scenarios[i]?.name ?? ""), grid: { show: false }, ...(scenarios.length > 3 ? { rotate: -25, size: 96 } : { size: 34 }) }),
        axis({ values: (_, ticks) => ticks.map(format), size: 62 }),
      ],
      series: [{ label: "scenario", value: (_, i) => scenarios[i]?.name ?? "–" }, ...names.map((name, at) => ({
        label: name, stroke: () => color(hue(at)), fill: () => `${color(hue(at))}66`, paths: paths(at), points: { show: false }, value: (_, v) => format(v),
      }))],
    }, [scenarios.map((_, i) => i), ...values]);
  }

  const fullLine = { hooks: { draw: [(u) => {
    const y = Math.round(u.valToPos(1, "y", true));
    u.ctx.save();
    u.ctx.strokeStyle = color("--muted");
    u.ctx.setLineDash([5, 4]);
    u.ctx.beginPath();
    u.ctx.moveTo(u.bbox.left, y);
    u.ctx.lineTo(u.bbox.left + u.bbox.width, y);
    u.ctx.stroke();
    u.ctx.restore();
  }] } };

  lines("use-plot", (each) => each.use, percent, { height: 280, least: 1.1, plugins: [fullLine] });
  lines("waiting-plot", (each) => each.waiting, count, { least: 1 });
  lines("served-plot", (each) => each.served, count, { least: 1 });
  waits("interactive-plot", (each) => each.interactive);
  waits("batch-plot", (each) => each.batch);
  bars("programs-plot", ["half up to", "nine of ten up to"], [0, 1].map((at) => scenarios.map((each) => each.programs[at])), seconds);
  bars("uncached-plot", ["tokens"], [scenarios.map((each) => each.uncached)], count);

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach((each) => each.redraw(false, true)));
})();
