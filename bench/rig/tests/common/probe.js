// Looks at a page as a reader's browser shows it, and tells the page around it what it found.
(() => {
  const shown = (e) => e.getClientRects().length > 0 && getComputedStyle(e).visibility === "visible";
  const colour = (text) => (text.match(/[\d.]+/g) || []).map(Number);
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = colour(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] > 0.5) return c;
    }
    return [255, 255, 255];
  };
  const found = {
    width: innerWidth, dark: matchMedia("(prefers-color-scheme: dark)").matches,
    scroll: document.documentElement.scrollWidth, errors, drawings: 0, texts: 0, outside: [], overlapping: [], contrast: 99, pale: [], unnamed: 0, headless: 0,
    resources: performance.getEntriesByType("resource").map((e) => e.name),
    ids: document.querySelectorAll("[id]").length - new Set([...document.querySelectorAll("[id]")].map((e) => e.id)).size,
    results: JSON.parse(document.getElementById("results").textContent),
  };
  for (const svg of [...document.querySelectorAll("svg")].filter(shown)) {
    found.drawings++;
    const name = (svg.getAttribute("aria-labelledby") || "").split(" ").map((id) => document.getElementById(id));
    if (svg.getAttribute("role") !== "img" || name.length !== 2 || name.some((e) => !e || !e.textContent)) found.unnamed++;
    const frame = svg.getBoundingClientRect();
    const boxes = [...svg.querySelectorAll("text")].map((t) => [t.textContent, t.getBoundingClientRect()]);
    boxes.forEach(([text, box], i) => {
      found.texts++;
      if (box.left < frame.left - 0.5 || box.right > frame.right + 0.5 || box.top < frame.top - 0.5 || box.bottom > frame.bottom + 0.5)
        found.outside.push(text);
      for (const [other, its] of boxes.slice(i + 1))
        if (Math.min(box.right, its.right) - Math.max(box.left, its.left) > 1 && Math.min(box.bottom, its.bottom) - Math.max(box.top, its.top) > 1)
          found.overlapping.push(svg.querySelector("title").textContent + ": " + text + " | " + other);
    });
  }
  for (const e of document.body.querySelectorAll("*")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !shown(e) || ["SCRIPT", "STYLE", "title", "desc"].includes(e.tagName)) continue;
    const style = getComputedStyle(e);
    const [a, b] = [luminance(colour(e instanceof SVGElement ? style.fill : style.color)), luminance(ground(e))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.contrast = Math.min(found.contrast, contrast);
    if (contrast < 4.5) found.pale.push(e.textContent.slice(0, 40));
  }
  for (const table of document.querySelectorAll("table"))
    if (!table.querySelector("thead th[scope=col]") || [...table.querySelectorAll("tbody tr")].some((r) => !r.querySelector("th[scope=row]"))) found.headless++;
  parent.postMessage(encodeURIComponent(JSON.stringify(found)), "*");
})();
