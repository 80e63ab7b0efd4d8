"use strict";
// Tables sort by a click on a column's head; numbers by value, the rest as text.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach(other => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = row => {
      const cell = row.cells[column];
      if (!cell) return [1, ""];
      if (cell.dataset.value !== undefined) return [0, Number(cell.dataset.value)];
      return cell.textContent.trim() ? [0, cell.textContent.trim()] : [1, ""];
    };
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row, i) => ({row, i, key: key(row)}));
    rows.sort((a, b) => {
      if (a.key[0] !== b.key[0]) return a.key[0] - b.key[0];  // without a value: always last
      const [x, y] = [a.key[1], b.key[1]];
      const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
      return (down ? -order : order) || a.i - b.i;
    });
    body.append(...rows.map(entry => entry.row));
  }));
}
// Galleries show what their three choices leave.
for (const gallery of document.querySelectorAll(".gallery")) {
  const form = gallery.querySelector("form");
  const choice = name => form.elements[name] ? form.elements[name].value : "";
  const update = () => {
    const group = choice("group"), method = choice("method"), wanted = choice("case");
    let shown = 0;
    for (const part of gallery.querySelectorAll(".group")) {
      part.hidden = group !== "" && part.dataset.group !== group;
      for (const one of part.querySelectorAll(".case")) {
        one.hidden = wanted !== "" && one.dataset.case !== wanted;
        for (const line of one.querySelectorAll(".line")) {
          const given = line.dataset.method === "";
          const fits = method === "" || (method === "first" ? !("more" in line.dataset) : method === "=" + line.dataset.method);
          line.hidden = !given && !fits;
          shown += !given && fits && !one.hidden && !part.hidden;
        }
      }
    }
    gallery.querySelector(".empty").hidden = shown > 0;
  };
  form.addEventListener("change", update);
  form.addEventListener("submit", event => event.preventDefault());
  update();
}
