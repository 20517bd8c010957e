"use strict";
// Shows the figures, lets a click choose a layer, and keeps the figures in the page's theme.

const content = JSON.parse(document.getElementById("figures").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen === undefined ? dark.matches : chosen === "dark";
}

function models() {
  return Bokeh.documents.flatMap((doc) => [...doc.all_models]);
}

function named(name) {
  return models().find((model) => model.name === name) ?? null;
}

// Mappers begin with the colours for white paper; on dark paper the dark end would vanish.
function paint() {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim();
  const soft = style.getPropertyValue("--line").trim();
  for (const model of models()) {
    if (model.type.endsWith("Axis")) {
      model.setv({axis_line_color: soft, major_tick_line_color: soft, minor_tick_line_color: soft,
                  axis_label_text_color: ink, major_label_text_color: ink});
    } else if (model.type === "Grid") {
      model.setv({grid_line_color: soft, grid_line_alpha: 0.35});
    } else if (model.type === "ColorBar") {
      model.setv({major_label_text_color: ink, bar_line_color: null, major_tick_line_color: ink});
    } else if (model.type === "Legend") {
      model.setv({label_text_color: ink});
    } else if (model.type === "GlyphRenderer" && model.name === "ink") {
      model.glyph.setv({line_color: ink});
    } else if (model.type.endsWith("ColorMapper")) {
      model.paper ??= model.palette;
      const last = model.paper.length - 1;
      const light = model.paper.map((_, place) => model.paper[Math.round(0.3 * last + 0.7 * place)]);
      model.setv({palette: isDark() ? light : model.paper});
    }
  }
}

function showLayer(run, layer) {
  for (const part of ["points", "lines"]) {
    const shown = named(`layer-${part}-${run}`);
    if (shown === null || !(layer in shown.tags)) return;
    shown.data = shown.tags[layer].data;
  }
  const section = document.getElementById(`run-${run}`);
  for (const row of section.querySelectorAll("[data-layer]")) {
    const chosen = Number(row.dataset.layer) === layer;
    row.setAttribute("aria-pressed", String(chosen));
    if (chosen) section.querySelector(".chosen-layer").textContent = row.textContent.trim();
  }
}

function listen() {
  for (const button of document.querySelectorAll("button[data-layer]")) {
    button.addEventListener("click", () => showLayer(Number(button.dataset.run), Number(button.dataset.layer)));
  }
  for (const cells of models().filter((model) => (model.name ?? "").startsWith("heatmap-cells-"))) {
    cells.selected.properties.indices.change.connect(() => {
      const [cell] = cells.selected.indices;
      if (cell !== undefined) showLayer(Number(cells.name.split("-").pop()), cells.data.layer[cell]);
    });
  }
  document.getElementById("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    paint();
  });
  dark.addEventListener("change", paint);
}

// A finger that drags scrolls the page; the toolbar turns zooming on.
function leaveDraggingToFingers() {
  if (!window.matchMedia("(pointer: coarse)").matches) return;
  for (const tool of models().filter((model) => ["BoxZoomTool", "PanTool"].includes(model.type))) tool.active = false;
}

Promise.resolve(content.items.length ? Bokeh.embed.embed_items(content.docs, content.items) : []).then(() => {
  paint();
  listen();
  leaveDraggingToFingers();
  document.documentElement.dataset.ready = "true";
});
