// Draws the plots and fills the table of agents from the data in the page. Text only ever goes in as text.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colors = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7", "--c8"];
  const plots = [];

  const clock = (s) => {
    if (s < 0) return "";
    const whole = Math.round(s), m = Math.floor(whole / 60), two = (n) => String(n).padStart(2, "0");
    if (data.elapsed_s < 60) return `${Math.round(s * 10) / 10} s`;
    return m >= 60 ? `${Math.floor(m / 60)}:${two(m % 60)}:${two(whole % 60)}` : `${m}:${two(whole % 60)}`;
  };
  const percent = (share) => (share == null ? "–" : `${Math.round(share * 100)} %`);
  const number = (n) => (n == null ? "–" : n >= 10 || Number.isInteger(n) ? Math.round(n).toLocaleString("en") : n.toFixed(1));
  const seconds = (s) => (s == null ? "–" : s < 10 ? `${s.toFixed(2)} s` : s < 60 ? `${Math.round(s)} s` : clock(s));
  // For the ticks of an axis only: amounts come with their text, so that every place writes them alike.
  const dollars = (micro) => {
    if (micro >= 1e6 || micro === 0) return `$${(micro / 1e6).toFixed(2)}`;
    return micro >= 100 ? `$${(micro / 1e6).toFixed(4)}` : `$${(micro / 1e6).toFixed(6).replace(/0+$/, "")}`;
  };
  const compact = (n) => (n >= 1e9 ? `${(n / 1e9).toFixed(1)}G` : n >= 1e6 ? `${(n / 1e6).toFixed(1)}M` : n >= 1e4 ? `${(n / 1e3).toFixed(1)}k` : number(n));

  const axis = (more) => ({
    stroke: () => color("--muted"), font: "12px system-ui, sans-serif",
    grid: { stroke: () => color("--line"), width: 1 }, ticks: { show: false }, ...more,
  });
  const series = (label, at, more) => ({
    label, stroke: () => color(colors[at % colors.length]), width: 1.6, points: { show: false }, spanGaps: true, ...more,
  });
  const filled = (at) => ({ fill: () => `${color(colors[at % colors.length])}26` });

  function plot(id, options, columns) {
    const holder = document.querySelector(`#${id} .plot`);
    if (columns.length < 2 || !columns[0].length) {
      holder.classList.add("none");
      holder.textContent = "nothing to show";
      return;
    }
    const size = () => ({ width: Math.max(200, holder.clientWidth), height: options.height || 220 });
    const made = new uPlot({
      ...size(), cursor: { points: { size: 6 }, drag: { x: true, y: false } }, legend: { live: true },
      padding: [12, 12, 0, 0], ...options,
    }, columns, holder);
    plots.push(made);
    new ResizeObserver(() => made.setSize(size())).observe(holder);
  }

  const steps = [0.1, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800, 604800];
  const timed = (axisFormat, range) => ({
    scales: { x: { time: false, range: (_, min, max) => (min === data.x[0] && max === data.x.at(-1) ? [0, data.elapsed_s || 1] : [min, max]) }, y: { range: (_, min, max) => range(max || 0) } },
    axes: [
      axis({ values: (_, ticks) => ticks.map(clock), space: 70, incrs: steps, size: 34 }),
      axis({ values: (_, ticks) => ticks.map(axisFormat), size: 58 }),
    ],
  });
  const at = { label: "at", value: (_, s) => (s == null ? "whole run" : clock(s)) };
  // A legend says what was over the whole run until one points at an instant.
  const told = (whole, format) => ({ value: (_, v, series, i) => (i == null ? whole : format(v)) });

  // A limit has the same colour in every report, as far as there are colours; two on one page never share one.
  const colored = (names) => {
    const taken = new Set();
    return names.map((name) => {
      let at = [...name].reduce((sum, letter) => (sum * 31 + letter.codePointAt(0)) % 65521, 7) % colors.length;
      while (taken.size < colors.length && taken.has(at)) at = (at + 1) % colors.length;
      taken.add(at);
      return at;
    });
  };
  // Where nothing was measured the line goes on (undefined), but not over a stretch in which no runner lived (null).
  const unless = (still, values) => values.map((v, i) => v ?? (still[i] ? null : undefined));
  const still = data.x.map((x) => data.pauses.some(([from, to]) => x >= from && x <= to));

  // The stretches in which no runner lived, from the last sign of one to the first of the next.
  const pauses = {
    hooks: {
      drawClear: [(u) => {
        u.ctx.save();
        u.ctx.beginPath();
        u.ctx.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height);
        u.ctx.clip();
        u.ctx.fillStyle = `${color("--muted")}2e`;
        for (const [from, to] of data.pauses) {
          const left = u.valToPos(from, "x", true);
          u.ctx.fillRect(left, u.bbox.top, u.valToPos(to, "x", true) - left, u.bbox.height);
        }
        u.ctx.restore();
      }],
      draw: [(u) => {
        const ratio = devicePixelRatio, right = u.bbox.left + u.bbox.width;
        let taken = -Infinity;
        u.ctx.save();
        u.ctx.strokeStyle = u.ctx.fillStyle = color("--ink");
        u.ctx.lineWidth = ratio;
        u.ctx.font = `${11 * ratio}px system-ui, sans-serif`;
        u.ctx.textBaseline = "top";
        u.ctx.textAlign = "left";
        const wide = u.ctx.measureText("resumed").width + 4 * ratio;
        for (const [, to] of data.pauses) {
          const x = Math.round(u.valToPos(to, "x", true));
          if (x < u.bbox.left || x > right) continue;
          u.ctx.beginPath();
          u.ctx.moveTo(x, u.bbox.top);
          u.ctx.lineTo(x, u.bbox.top + u.bbox.height);
          u.ctx.stroke();
          const begin = x + wide > right ? x - wide : x + 4 * ratio;
          if (begin < taken) continue;
          u.ctx.fillText("resumed", begin, u.bbox.top + 2 * ratio);
          taken = begin + wide;
        }
        u.ctx.restore();
      }],
    },
  };

  // A line where a limit is used to the full.
  const fullLine = {
    hooks: {
      draw: [(u) => {
        const y = Math.round(u.valToPos(1, "y", true));
        u.ctx.save();
        u.ctx.strokeStyle = color("--muted");
        u.ctx.setLineDash([5, 4]);
        u.ctx.beginPath();
        u.ctx.moveTo(u.bbox.left, y);
        u.ctx.lineTo(u.bbox.left + u.bbox.width, y);
        u.ctx.stroke();
        u.ctx.restore();
      }],
    },
  };

  document.getElementById("limits-note").textContent = data.limits.length
    ? `A rate: over ${data.smooth_s} s, what was used of what it gave: its refill, and what was taken out of its bucket beside that. Beyond 100 % is debt: answers used more than was held for them. A window or slots: how full it was.`
    : "No limit was configured.";
  plot("limits-plot", {
    height: 280, ...timed(percent, (max) => [0, Math.max(1.1, max * 1.05)]), plugins: [fullLine, pauses],
    series: [at, ...colored(data.limits.map((limit) => limit.label)).map((color, i) => series(data.limits[i].label, color, told(data.limits[i].whole, percent)))],
  }, [data.x, ...data.limits.map((limit) => limit.shares)]);

  const whole = data.whole;
  plot("agents-plot", {
    ...timed(number, (max) => [0, Math.max(1, max * 1.08)]), plugins: [pauses],
    series: [at, series("at work", 0, { ...told(whole.working, number), ...filled(0) }), series("calls waiting", 1, told(whole.waiting, number)),
      series("calls under way", 2, told(whole.calling, number))],
  }, [data.x, data.working, data.waiting, data.calling]);

  plot("waits-plot", {
    ...timed((s) => (s < 1 ? `${Math.round(s * 1000)} ms` : s < 60 ? `${Math.round(s * 10) / 10} s` : seconds(s)), (max) => [0, Math.max(0.01, max * 1.08)]), plugins: [pauses],
    series: [at, series("mean", 0, { ...told(whole.mean_wait_s, seconds), ...filled(0), spanGaps: false }),
      series("longest", 1, { ...told(whole.longest_wait_s, seconds), spanGaps: false })],
  }, [data.x, unless(still, data.mean_wait_s), unless(still, data.longest_wait_s)]);

  // Every label where there is room for it, else every second or third.
  const apart = (u) => Math.ceil((data.wait_labels.length * 48) / Math.max(1, u.width - 70));
  const bars = uPlot.paths.bars({ size: [0.8, 80] });
  plot("spread-plot", {
    scales: { x: { time: false, range: [-0.6, data.wait_labels.length - 0.4] }, y: { range: (_, min, max) => [0, Math.max(1, max * 1.08)] } },
    axes: [
      axis({ splits: data.wait_labels.map((_, i) => i), values: (u, ticks) => ticks.map((i) => (i % apart(u) ? "" : data.wait_labels[i] ?? "")), grid: { show: false }, size: 34 }),
      axis({ values: (_, ticks) => ticks.map(compact), size: 58 }),
    ],
    series: [{ label: "waited", value: (_, i) => (i == null ? "any time" : data.wait_labels[i] ?? "–") },
      series("calls", 0, { ...told(whole.calls, number), ...filled(0), paths: bars, points: { show: false } })],
  }, [data.wait_labels.map((_, i) => i), data.wait_counts]);

  const known = data.costs.in_dollars;
  document.getElementById("costs-title").textContent = known ? "Cost by agent" : "Tokens by agent (no price is known)";
  // No tick between two micro-dollars: there is nothing.
  const wholes = Array.from({ length: 13 }, (_, power) => [1, 2, 5].map((n) => n * 10 ** power)).flat();
  const few = data.costs.values.length <= 120;
  plot("costs-plot", {
    scales: { x: { time: false, range: [-0.6, Math.max(0.6, data.costs.values.length - 0.4)] }, y: { range: (_, min, max) => [0, max * 1.08 || 1] } },
    axes: [
      axis({ values: (_, ticks) => ticks.map((i) => (Number.isInteger(i) ? i + 1 : "")), grid: { show: false }, size: 34 }),
      axis({ values: (_, ticks) => ticks.map(known ? dollars : compact), size: 72, incrs: wholes }),
    ],
    series: [{ label: "agent", value: (_, i) => (i == null ? "all" : data.costs.names[i]) },
      series(known ? "cost" : "tokens", 2, {
        ...filled(2), value: (_, v, series, i) => (i == null ? data.costs.total : data.costs.texts[i] ?? "–"),
        paths: few ? bars : uPlot.paths.stepped({ align: 1 }),
      })],
  }, [data.costs.names.map((_, i) => i), data.costs.values]);

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach((each) => each.redraw(false, true)));

  // The table of agents: sorted by a click on a column, filtered as one types.
  const columns = [
    ["agent", "word fold", (a) => a.name], ["state", "word", (a) => a.state], ["tries", "", (a) => a.tries, number],
    ["calls", "", (a) => a.calls, compact], ["prompt tokens", "", (a) => a.prompt, compact], ["cached", "", (a) => (a.prompt ? a.cached / a.prompt : null), percent],
    ["output", "", (a) => a.output, compact], ["cost", "", (a) => a.cost], ["waited", "", (a) => a.wait_s, seconds],
    ["longest", "", (a) => a.longest_s, seconds], ["took", "", (a) => a.took_s, seconds],
  ];
  const table = document.getElementById("agents"), head = table.tHead.rows[0], body = table.tBodies[0];
  let sorted = { column: null, down: true };

  columns.forEach(([name, classes], i) => {
    const cell = document.createElement("th"), button = document.createElement("button");
    cell.className = classes;
    button.textContent = name;
    button.addEventListener("click", () => {
      sorted = { column: i, down: sorted.column === i ? !sorted.down : !classes };
      fill();
    });
    cell.append(button);
    head.append(cell);
  });

  function row(agent) {
    const made = document.createElement("tr");
    for (const [name, classes, of, format] of columns) {
      const cell = document.createElement("td");
      cell.className = classes;
      const shown = of(agent);
      cell.textContent = format ? (shown == null ? "–" : format(shown)) : shown;
      if (name === "cost") cell.textContent = agent.cost_text;
      if (name === "state" && (shown === "done" || shown === "failed")) cell.classList.add(shown === "done" ? "good" : "bad");
      if (name === "agent" && agent.error) {
        const error = document.createElement("div");
        error.className = "error";
        error.textContent = agent.error;
        cell.append(error);
        if (agent.log) {
          const log = document.createElement("a");
          log.className = "log";
          log.href = agent.log;
          log.textContent = agent.log;
          cell.append(log);
        }
      }
      made.append(cell);
    }
    return made;
  }

  function fill() {
    const wanted = document.getElementById("filter").value.trim().toLowerCase();
    const found = data.agents.filter((a) => !wanted || `${a.name} ${a.state} ${a.error || ""}`.toLowerCase().includes(wanted));
    if (sorted.column !== null) {
      const of = columns[sorted.column][2], sign = sorted.down ? -1 : 1;
      found.sort((a, b) => {
        const x = of(a) ?? -1, y = of(b) ?? -1;
        return sign * (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y);
      });
    }
    const most = 2000;
    body.replaceChildren(...found.slice(0, most).map(row));
    document.getElementById("shown").textContent = found.length > most ? `the first ${most} of ${found.length}` : `${found.length} of ${data.agents.length}`;
  }
  document.getElementById("filter").addEventListener("input", fill);
  fill();
})();
