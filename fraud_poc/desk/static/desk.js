// The desk's own script: keys, charts, and words about what went wrong. Everything else is HTML from the server, fetched by htmx.
(() => {
  "use strict";
  const all = (what, within = document) => [...within.querySelectorAll(what)];
  const one = (what, within = document) => within.querySelector(what);
  const page = document.body.dataset.page;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const still = matchMedia("(prefers-reduced-motion: reduce)");

  // --- notices ---
  let fading;
  function tell(text) {
    const notice = one("#notice");
    notice.textContent = text;
    notice.hidden = false;
    clearTimeout(fading);
    fading = setTimeout(() => { notice.hidden = true; }, 5000);
  }
  document.addEventListener("htmx:error", () => tell("The desk does not answer. What you see may be old."));

  // --- keys ---
  const rows = () => all("#rows a.open");
  function move(step) {
    const links = rows();
    if (!links.length) return;
    const at = links.indexOf(document.activeElement) + step;
    if (at >= links.length) { one("#more a")?.click(); return; }
    const link = links[Math.max(at, 0)];
    link.focus({focusVisible: true});
    link.closest("tr").scrollIntoView({block: "nearest", behavior: still.matches ? "auto" : "smooth"});
  }
  function press(key) {
    const target = one(`[data-key="${key}"]`);
    if (!target || target.disabled) return false;
    if (target.matches("textarea")) target.focus(); else target.click();
    return true;
  }
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const typing = event.target.matches("input:not([type=checkbox], [type=range]), textarea, select");
    if (typing) { if (event.key === "Escape") event.target.blur(); return; }
    if (one("dialog[open]")) return;
    let done = true;
    if (event.key === "?") one("#help")?.showModal();
    else if (page === "queue" && event.key === "j") move(1);
    else if (page === "queue" && event.key === "k") move(-1);
    else if (event.key === "/" && one("#find")) one("#find").select();
    else if (event.key === "/" && page === "case") location.href = one('[data-key="q"]').href;
    else if (event.key === "k" && page === "case") history.back();
    else if ("cfunqj".includes(event.key)) done = press(event.key);
    else done = false;
    if (done) event.preventDefault();
  });
  document.addEventListener("click", event => {
    if (event.target.closest('[data-do="help"]')) one("#help").showModal();
    const toggle = event.target.closest('[data-do="filters"]');  // on narrow screens the filters are folded away
    if (toggle) toggle.setAttribute("aria-expanded", toggle.form.classList.toggle("all"));
  });
  document.addEventListener("submit", event => {  // a decision is sent once, also by a double click
    if (event.target.method !== "post") return;
    if (event.target.dataset.sent) event.preventDefault();
    event.target.dataset.sent = "1";
  });
  addEventListener("pageshow", () => all("form[data-sent]").forEach(form => delete form.dataset.sent));

  // --- charts ---
  const charts = new Map();
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const compact = new Intl.NumberFormat("en", {notation: "compact", maximumFractionDigits: 1});
  const grouped = new Intl.NumberFormat("en", {maximumFractionDigits: 0});
  const day = ms => new Date(ms).toISOString().slice(0, 10);
  function style() {
    const text = {color: css("soft"), fontFamily: "Inter Variable, sans-serif", fontSize: 11.5};
    const axis = {axisLine: {lineStyle: {color: css("line")}}, axisTick: {show: false}, axisLabel: {...text, hideOverlap: true}, splitLine: {lineStyle: {color: css("line")}}, nameTextStyle: text};
    const tooltip = {renderMode: "richText", backgroundColor: css("card"), borderColor: css("line"), textStyle: {...text, color: css("ink"), fontSize: 12.5}, confine: true};
    return {text, axis, tooltip, bands: {low: css("soft"), medium: dark.matches ? "#d9a441" : "#d08a00", high: css("flag")}, quiet: {animation: false, textStyle: text}};
  }
  function draw(element, option) {
    let chart = charts.get(element);
    if (!chart) { chart = echarts.init(element, null, {renderer: "canvas"}); charts.set(element, chart); new ResizeObserver(() => chart.resize()).observe(element); }
    chart.setOption(option, true);
    return chart;
  }

  function timeline(element, value) {
    const {axis, tooltip, bands, quiet} = style();
    const point = order => ({value: [order.time, order.amount], order, symbolSize: order.this ? 15 : 9, symbol: order.label === 1 ? "diamond" : "circle",
      itemStyle: {color: order.label === 1 ? css("flag") : order.this ? css("accent") : bands[order.band], borderColor: order.this ? css("ink") : css("card"), borderWidth: order.this ? 2 : 1}});
    const chart = draw(element, {...quiet, useUTC: true, grid: {left: 8, right: 14, top: 14, bottom: 4, containLabel: true}, tooltip: {...tooltip, formatter: p => `${p.data.order.name}\n${day(p.data.order.time)}   ${p.data.order.words}\n${p.data.order.label_words}`},
      xAxis: {type: "time", ...axis, splitLine: {show: false}}, yAxis: {type: "value", ...axis, axisLabel: {...axis.axisLabel, formatter: v => compact.format(v)}, splitNumber: 3},
      series: [{type: "scatter", data: value.map(point), cursor: "pointer"}]});
    chart.off("click");
    chart.on("click", p => { if (!p.data.order.this) location.href = p.data.order.href; });
  }

  function graph(element, value) {
    const {text, tooltip, quiet} = style();
    const nodes = [{id: "this", name: value.name, x: 0, y: 0, symbolSize: 26, itemStyle: {color: css("accent")}, label: {show: true, position: "bottom", color: css("ink"), fontWeight: 600}}], edges = [];
    const total = value.groups.reduce((sum, group) => sum + group.orders.length + 1, 0);
    let place = 0;
    for (const group of value.groups) {  // each entity takes the part of the circle that its orders need
      const share = group.orders.length + 1, middle = (place + share / 2) / total * 2 * Math.PI - Math.PI / 2;
      nodes.push({id: group.entity, name: group.entity, words: group.value, x: 62 * Math.cos(middle) * 1.5, y: 62 * Math.sin(middle), symbol: "roundRect", symbolSize: [14, 14], itemStyle: {color: css("soft")},
        label: {show: true, position: Math.cos(middle) < 0 ? "left" : "right", color: css("ink"), formatter: group.words}});
      edges.push({source: "this", target: group.entity});
      group.orders.forEach((order, number) => {
        const angle = (place + number + 1) / total * 2 * Math.PI - Math.PI / 2;
        nodes.push({id: `${group.entity} ${order.id}`, name: order.name, words: `${order.words}\n${order.label_words}`, href: order.href, x: 120 * Math.cos(angle) * 1.5, y: 120 * Math.sin(angle), symbolSize: 13, symbol: order.label === 1 ? "diamond" : "circle",
          itemStyle: {color: order.label === 1 ? css("flag") : order.label === 0 ? css("clear") : css("edge")}});
        edges.push({source: group.entity, target: `${group.entity} ${order.id}`});
      });
      place += share;
    }
    const chart = draw(element, {...quiet, tooltip: {...tooltip, formatter: p => p.dataType === "node" ? `${p.data.name}${p.data.words ? "\n" + p.data.words : ""}` : ""},
      series: [{type: "graph", layout: "none", data: nodes, links: edges, roam: false, preserveAspect: "contain", left: 70, right: 70, top: 24, bottom: 28, label: {...text, backgroundColor: css("card"), padding: [1, 3]}, lineStyle: {color: css("edge"), width: 1.2, opacity: 0.8}, emphasis: {focus: "adjacency"}}]});
    chart.off("click");
    chart.on("click", p => { if (p.data.href) location.href = p.data.href; });
  }

  const FEW = 30;  // events with a label: a rate of fewer is shown with its counts
  const NOTHING = {volume: "No events in this period.", saved: "Nothing was saved or lost in this period.", rates: "No event of this period has a label yet.", scores: "No events in this period.", ages: "No case is open."};
  const isEmpty = series => series.every(one => one.data.every(point => !(point?.words ? point.value !== null : point)));
  const trends = {
    volume: (d, s) => ({legend: true, xAxis: {type: "category", data: d.days}, yAxis: {type: "value"},
      series: ["low", "medium", "high"].map(band => ({name: band, type: "bar", stack: "all", barCategoryGap: "18%", itemStyle: {color: s.bands[band], opacity: band === "low" ? 0.45 : 1}, data: d.volume[band]}))}),
    scores: (d, s) => ({xAxis: {type: "category", data: d.scores.map((_, i) => (i / 20).toFixed(2)), name: "score", nameLocation: "middle", nameGap: 24}, yAxis: {type: "log", min: 0.5, startValue: 0.5},  // a single event has a bar
      series: [{name: "orders", type: "bar", barCategoryGap: "10%", itemStyle: {color: css("accent")}, data: d.scores.map(v => v || null)}]}),
    rates: (d, s) => ({legend: true, percent: true, xAxis: {type: "category", data: d.weeks}, yAxis: {type: "value", min: 0, ...(Math.max(...Object.values(d.rates).flat()) > 0.75 ? {max: 1, interval: 0.25} : {})},
      series: ["low", "medium", "high"].map(band => ({name: band, type: "line", symbol: "circle", symbolSize: 6, connectNulls: true, itemStyle: {color: s.bands[band]}, lineStyle: {width: 2}, labelLayout: {hideOverlap: true},
        data: d.rates[band].map((rate, week) => { const [frauds, known] = d.rate_counts[band][week]; return {value: rate, words: `${frauds} of ${known}`, label: {show: rate !== null && known < FEW, position: "top", color: css("soft"), fontSize: 10.5, formatter: p => p.data.words}}; })}))}),
    saved: (d, s) => ({xAxis: {type: "category", data: d.days}, yAxis: {type: "value"},
      series: [{name: "saved", type: "line", showSymbol: false, lineStyle: {color: css("accent"), width: 2}, itemStyle: {color: css("accent")}, areaStyle: {color: css("wash")}, data: d.saved}]}),
    ages: (d, s) => ({flat: true, xAxis: {type: "value"}, yAxis: {type: "category", inverse: true, data: d.ages.map(a => a[0])},
      series: [{name: "cases", type: "bar", barCategoryGap: "30%", itemStyle: {color: css("accent")}, label: {show: true, position: "right", color: css("soft"), formatter: p => grouped.format(p.value)}, data: d.ages.map(a => a[1])}]}),
  };
  function drawTrends(data) {
    const s = style();
    for (const element of all("[data-trend]")) {
      const {legend, percent, flat, ...option} = trends[element.dataset.trend](data, s);
      if (isEmpty(option.series)) element.dataset.empty = NOTHING[element.dataset.trend]; else delete element.dataset.empty;
      const form = v => option.yAxis.type === "log" && v < 1 ? "" : percent ? `${(100 * v).toFixed(v < 0.1 ? 1 : 0)} %` : compact.format(v);
      const values = flat ? option.xAxis : option.yAxis, names = flat ? option.yAxis : option.xAxis;
      Object.assign(values, {...s.axis, axisLabel: {...s.axis.axisLabel, formatter: form}, axisLine: {show: false}, splitNumber: 4});
      Object.assign(names, {...s.axis, splitLine: {show: false}});
      draw(element, {...s.quiet, grid: {left: 6, right: flat ? 46 : 14, top: legend ? 32 : 14, bottom: names.name ? 20 : 4, containLabel: true},
        legend: legend ? {top: 0, right: 0, itemWidth: 10, itemHeight: 10, icon: "roundRect", textStyle: s.text} : undefined,
        tooltip: {...s.tooltip, trigger: "axis", axisPointer: {type: flat ? "none" : "line", lineStyle: {color: css("edge")}}, valueFormatter: v => v === null || v === undefined ? "–" : percent ? form(v) : grouped.format(v), ...(percent ? {formatter: points => [points[0].axisValueLabel, ...points.filter(p => p.data.value !== null).map(p => `${p.seriesName}  ${form(p.data.value)} (${p.data.words})`)].join("\n")} : {})}, ...option});
    }
  }
  let newest;
  async function loadTrends() {
    const tiles = one("#tiles"), state = one("#trends-state");
    try {
      const answer = await fetch(tiles.dataset.url, {headers: {Accept: "application/json"}});
      if (answer.status === 401) { location.reload(); return; }
      if (!answer.ok) throw new Error(answer.status);
      const data = newest = await answer.json();
      for (const tile of all("[data-tile]")) tile.textContent = data.tiles[tile.dataset.tile];
      drawTrends(data);
      state.textContent = data.behind ? "Still counting the newest orders …" : data.empty ? "No orders in this period yet." : "";
      if (data.behind && one("#what-if")) htmx.trigger("#what-if", "submit");
      setTimeout(loadTrends, data.behind ? 1500 : 15000);
    } catch {
      state.textContent = "The counts could not be loaded. Trying again in 15 seconds.";
      setTimeout(loadTrends, 15000);
    }
  }

  function drawAll() {
    for (const element of all("[data-chart]")) ({timeline, graph})[element.dataset.chart](element, JSON.parse(element.dataset.value));
    if (newest) drawTrends(newest);
  }
  const ready = document.fonts.load('12px "Inter Variable"').catch(() => {});
  ready.then(() => { if (window.echarts) drawAll(); if (page === "trends") loadTrends(); });
  dark.addEventListener("change", () => { if (window.echarts) drawAll(); });

  // the number beside the slider follows the finger; the counts come from the server
  const slider = one("#what-if [name=step]");
  const showStep = () => { one("#threshold").textContent = JSON.parse(one("#threshold").dataset.steps)[slider.value]; };
  slider?.addEventListener("input", showStep);
  one("#what-if")?.addEventListener("submit", event => event.preventDefault());

  // htmx listens from its own timer on, set before this one: what somebody changed earlier, or the browser kept on a reload, applies now
  const values = form => new URLSearchParams(new FormData(form)).toString();
  setTimeout(() => {
    for (const form of all("form[hx-get]")) {
      const sent = form.cloneNode(true);
      sent.reset();
      if (values(form) === values(sent)) continue;
      if (slider) showStep();
      htmx.trigger(form, "submit");
    }
  });
})();
