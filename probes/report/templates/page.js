"use strict";
// Sorting: heads of sortable tables become buttons; rows are ordered by data-key, numbers before texts, undefined last.
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  const body = table.tBodies[0];
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const x = Number(a), y = Number(b);
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en", { numeric: true }) : x - y;
  };
  heads.forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      const key = (row) => row.cells[place].dataset.key;
      const rows = [...body.rows].sort((a, b) => {
        const undefinedLast = (key(a) === "") - (key(b) === "");
        return undefinedLast || (ascending ? 1 : -1) * compare(key(a), key(b));
      });
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      body.append(...rows);
      document.getElementById("sorted").textContent =
        `Sorted by ${head.dataset.name}, ${ascending ? "ascending" : "descending"}`;
    });
  });
}
// Print everything that is folded away, except the side-by-side answers.
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("section:not(#flips) details:not([open])")) {
    details.open = true;
    details.dataset.printed = "";
  }
});
addEventListener("afterprint", () => {
  for (const details of document.querySelectorAll("details[data-printed]")) {
    details.open = false;
    delete details.dataset.printed;
  }
});
