// Draws the plots of a comparison: one line or bar for each scenario. Text only ever goes in as text.
"use strict";
(() => {
  const { scenarios, limits, plotted } = JSON.parse(document.getElementById("data").textContent);
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const hue = (at) => `--c${(at % 8) + 1}`;
  const dash = (at) => (at < 8 ? undefined : [6, 4]);
  const drawn = [];

  const percent = (share) => (share == null ? "–" : `${Math.round(share * 100)} %`);
  const count = (n) => (n == null ? "–" : n >= 1e6 ? `${(n / 1e6).toFixed(1)}M` : n >= 1e4 ? `${(n / 1e3).toFixed(1)}k` : `${Math.round(n * 10) / 10}`);
  const seconds = (s) => (s == null ? "–" : s < 1 ? `${Math.round(s * 1000)} ms` : s < 120 ? `${Math.round(s * 10) / 10} s` : `${Math.round(s / 6) / 10} min`);
  const clock = (s) => (s < 60 ? `${Math.round(s)} s` : s < 36000 ? `${Math.round(s / 60)} min` : `${Math.round(s / 360) / 10} h`);

  const marks = { 0.01: "no wait", 0.1: "0.1 s", 1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min", 3600: "1 h", 36000: "10 h" };
  const steps = [1, 5, 10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800, 604800];
  const axis = (more) => ({
    stroke: () => color("--muted"), font: "12px system-ui, sans-serif",
    grid: { stroke: () => color("--line"), width: 1 }, ticks: { show: false }, ...more,
  });

  // A line that hides an earlier one, for it is the same, leaves an edge of it to be seen.
  const width = (known, i, of) => {
    const own = JSON.stringify(of(known[i]));
    return 1.6 + 2.4 * known.slice(i + 1).filter((each) => JSON.stringify(of(each)) === own).length;
  };
  // What a legend says of one instant is shown while somebody points at one.
  const idle = { hooks: {
    ready: (u) => u.root.classList.add("idle"),
    setCursor: (u) => u.root.classList.toggle("idle", u.cursor.idx == null),
  } };

  function plot(figure, options, columns) {
    const holder = figure.querySelector(".plot");
    if (!columns[0].length) {
      holder.classList.add("none");
      holder.textContent = "nothing to show";
      return;
    }
    const size = () => ({ width: Math.max(200, holder.clientWidth), height: options.height || 220 });
    const made = new uPlot({ ...size(), cursor: { points: { size: 6 } }, padding: [12, 24, 0, 0], ...options, plugins: [idle, ...(options.plugins || [])] }, columns, holder);
    drawn.push(made);
    new ResizeObserver(() => made.setSize(size())).observe(holder);
  }

  // Scenarios end at different times, and look at different instants: a line has gaps where it has no value.
  function lines(figure, of, format, options) {
    const tables = scenarios.map((each) => [each.at_s, of(each)]).filter(([xs, ys]) => xs.length && ys.length);
    const columns = tables.length ? uPlot.join(tables) : [[]];
    const known = scenarios.filter((each) => each.at_s.length && of(each).length);
    plot(figure, {
      ...options,
      scales: { x: { time: false }, y: { range: (_, min, max) => [0, Math.max(options.least, (max || 0) * 1.06)] } },
      axes: [axis({ values: (_, ticks) => ticks.map(clock), incrs: steps, space: 70, size: 34 }), axis({ values: (_, ticks) => ticks.map(format), size: 62 })],
      series: [{ label: "at", value: (_, s) => (s == null ? "–" : clock(s)) }, ...known.map((each, i) => ({
        label: each.name, stroke: () => color(hue(scenarios.indexOf(each))), dash: dash(scenarios.indexOf(each)), width: width(known, i, of),
        points: { show: false }, spanGaps: true, value: (_, v) => format(v),
      }))],
    }, columns);
  }

  function waits(figure, of) {
    const known = scenarios.filter((each) => of(each).length);
    const least = 0.01;
    plot(figure, {
      scales: { x: { time: false, range: [0, 100] }, y: { distr: 3, range: (_, min, max) => [least, Math.max(1, max || 1)] } },
      axes: [axis({ values: (_, ticks) => ticks.map((each) => `${each} %`), size: 34 }), axis({
        splits: (_, at, min, max) => Object.keys(marks).map(Number).filter((each) => each <= max * 1.001).sort((a, b) => a - b),
        filter: (_, splits) => splits, values: (_, ticks) => ticks.map((each) => marks[each]), size: 70,
      })],
      series: [{ label: "calls", value: (_, v) => (v == null ? "–" : `${v} %`) }, ...known.map((each, i) => ({
        label: each.name, stroke: () => color(hue(scenarios.indexOf(each))), dash: dash(scenarios.indexOf(each)), width: width(known, i, of),
        points: { show: false }, value: (_, v) => (v == null ? "–" : v <= least ? "no wait" : seconds(v)),
      }))],
    }, known.length ? [of(known[0]).map((_, i) => i), ...known.map((each) => of(each).map((v) => Math.max(v, least)))] : [[]]);
  }

  // A group for each figure, in it a bar for each scenario; the longest fills its track, or what `whole` says.
  function bars(id, groups) {
    const holder = document.getElementById(id);
    const known = groups.filter((group) => group.values.some((value) => value != null));
    if (!known.length) {
      holder.classList.add("none");
      holder.textContent = "nothing to show";
    }
    const made = (kind, parent, text) => {
      const element = parent.appendChild(document.createElement(kind));
      if (text !== undefined) element.textContent = text;
      return element;
    };
    for (const { title, values, text, whole } of known) {
      const group = made("div", holder);
      made("h3", group, title);
      const most = whole || Math.max(...values.map((value) => value || 0)) || 1;
      values.forEach((value, at) => {
        const row = made("div", group);
        row.className = "row";
        made("span", row, scenarios[at].name).title = scenarios[at].name;
        const track = made("div", row);
        track.className = "track";
        const bar = made("i", track);
        bar.style.width = `${Math.min(100, (100 * (value || 0)) / most)}%`;
        bar.style.background = `var(${hue(at)})`;
        made("b", row, value == null ? "–" : text(value, at));
      });
    }
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

  const template = document.getElementById("use-plot");
  plotted.forEach((name, at) => {
    const figure = template.content.firstElementChild.cloneNode(true);
    figure.querySelector("h2").textContent = `Use of ${name}`;
    if (!at || (at === plotted.length - 1 && at % 2)) figure.classList.add("wide");  // the scarcest, and one left over
    if (at) figure.querySelector("p").remove();
    template.before(figure);
    lines(figure, (each) => each.uses[at], percent, { height: at ? 220 : 280, least: 1.1, plugins: [fullLine] });
  });
  const of = (id) => document.getElementById(id);
  lines(of("waiting-plot"), (each) => each.waiting, count, { least: 1 });
  lines(of("served-plot"), (each) => each.served, count, { least: 1 });
  waits(of("interactive-plot"), (each) => each.interactive);
  waits(of("batch-plot"), (each) => each.batch);
  lines(of("failures-plot"), (each) => (each.failures.some(Boolean) ? each.failures : []), count, { least: 1 });

  const share = (part) => `${part > 0.99 && part < 1 ? Math.floor(part * 1000) / 10 : Math.round(part * 100)} %`;
  const dollars = (micro, at) => {
    const value = micro / 1e6, unknown = at != null && scenarios[at].unknown_cost ? " + ?" : "";
    return `$${value.toLocaleString("en-US", value < 1 ? { maximumFractionDigits: 4 } : { minimumFractionDigits: 2, maximumFractionDigits: 2 })}${unknown}`;
  };
  const figure = (title, of, text, whole) => ({ title, values: scenarios.map(of), text, whole });
  bars("limits-bars", limits.map((name, at) => figure(name, (each) => each.limits[at], share, 1)));
  bars("done-bars", [["calls served", "served_calls"], ["programs done", "programs_done"]]
    .map(([title, of]) => figure(title, (each) => each[of], (n) => n.toLocaleString("en-US"))));
  bars("wrong-bars", [
    ["429s from the provider", "answered_429"], ["other failures of the provider", "provider_failures"],
    ["calls refused", "refused"], ["calls failed for good", "failed"],
  ].map(([title, of]) => figure(title, (each) => each[of], (n) => n.toLocaleString("en-US"))).filter(({ values }) => values.some(Boolean)));
  bars("programs-bars", [figure("half of them up to", (each) => each.programs[0], seconds), figure("nine of ten up to", (each) => each.programs[1], seconds)]);
  bars("fairness-bars", [
    figure("served share of the least served", (each) => each.least_served, share, 1),
    figure("Jain's index", (each) => each.jain, (value) => value.toFixed(3), 1),
    figure("behind the most served, mean", (each) => each.behind, share, 1),
  ]);
  bars("cost-bars", [figure("in all", (each) => each.cost, dollars), figure("of a program", (each) => each.cost_of_program, dollars)]);
  bars("cache-bars", [figure("input read from the cache", (each) => each.cache_hits, share, 1), figure("uncached input of a program, tokens", (each) => each.uncached, count)]);

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach((each) => each.redraw(false, true)));
})();
