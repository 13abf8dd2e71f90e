"use strict";
// Draws the charts of the page, and redraws them when a switch changes: x axis, mean or runs, light or dark.
(() => {
  const { charts, axes, pool, variants } = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const chosen = (name, otherwise) => {
    const input = document.querySelector(`input[name="${name}"]:checked`);
    return input ? input.value : otherwise;
  };

  function traces(chart) {
    const axis = chosen("axis", "round"), show = chosen("show", "mean");
    const runs = chart.show.includes("runs");
    return chart.data.map((trace, i) => {
      const made = { ...trace };
      const wanted = !runs || !chart.show[i] || chart.show[i] === show;
      const x = chart.x.length ? pool[chart.x[i][axis]] : trace.x;
      made.visible = wanted && (!chart.x.length || x !== undefined);
      if (chart.x.length) made.x = x || [];
      return made;
    });
  }

  // names of lines that have no x of the chosen cost
  function missing(chart) {
    const axis = chosen("axis", "round");
    if (!chart.x.length) return "";
    const names = chart.data.filter((_, i) => chart.x[i][axis] === undefined).map((trace) => trace.name);
    const known = [...new Set(names)].join(", ").replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&amp;/g, "&");
    return known && `Not counted: ${axes[axis]} of ${known}`;
  }

  function layout(chart, place) {
    const style = getComputedStyle(root), ink = style.getPropertyValue("--ink").trim();
    const soft = style.getPropertyValue("--soft").trim(), grid = style.getPropertyValue("--grid").trim();
    const named = chart.data.filter((trace) => trace.showlegend !== false && trace.type !== "heatmap");
    const names = [...new Set(named.map((trace) => trace.name))];
    const needed = names.length > 1 || (names.length && chart.x.length && variants > 1);
    const rows = names.reduce((sum, name) => sum + 55 + 7 * name.length, 0) / Math.max(place.clientWidth, 200);
    const room = needed ? 19 * Math.max(0, Math.ceil(rows) - 1) : 0;  // for the legend
    const made = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true, colorway: undefined,
      font: { color: ink, family: "system-ui, sans-serif", size: 12 },
      margin: { l: 50, r: 14, t: 14, b: 44 },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", traceorder: "normal", font: { size: 11 } },
      showlegend: Boolean(needed),
      modebar: { bgcolor: "rgba(0,0,0,0)", color: soft, activecolor: ink },
      hoverlabel: { font: { family: "system-ui, sans-serif" }, namelength: -1 },
      ...chart.layout,
    };
    made.height = (made.height || (place.closest(".tall") ? 420 : 300)) + room;
    for (const name of ["xaxis", "yaxis"]) {
      made[name] = { gridcolor: grid, linecolor: grid, tickcolor: grid, ...made[name] };
    }
    if (chart.x.length) {
      made.xaxis = { ...made.xaxis, title: { text: axes[chosen("axis", "round")] || "rounds" } };
    }
    return made;
  }

  const options = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };

  // Charts are drawn when they come near the window: a switch redraws what is seen, the rest when it is scrolled to.
  const near = new Set(), stale = new Set(Object.keys(charts));

  function draw(ids) {
    const drawn = [...ids].filter((id) => stale.delete(id)).map((id) => {
      const place = document.getElementById(id), chart = charts[id];
      place.closest("figure").querySelector(".missing").textContent = missing(chart);
      return Plotly.react(place, traces(chart), layout(chart, place), options);
    });
    return Promise.all(drawn).then(() => {
      root.dataset.ready = [chosen("axis", ""), chosen("show", ""), chosen("theme", "system")].join(" ");
    });
  }

  function change() {
    const theme = chosen("theme", "system");
    if (theme === "system") delete root.dataset.theme;
    else root.dataset.theme = theme;
    Object.keys(charts).forEach((id) => stale.add(id));
    draw(near);
  }

  const observer = new IntersectionObserver((entries) => {
    entries.forEach((entry) => near[entry.isIntersecting ? "add" : "delete"](entry.target.id));
    draw(near);
  }, { rootMargin: "400px" });
  document.querySelectorAll(".chart").forEach((place) => observer.observe(place));
  document.querySelectorAll("fieldset input").forEach((input) => input.addEventListener("change", change));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", change);
  addEventListener("beforeprint", () => draw(Object.keys(charts)));
  change();
})();
