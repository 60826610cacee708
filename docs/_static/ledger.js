// Buttons on the page of the ledger that show the statements of one verdict; without JavaScript all are shown.
document.addEventListener("DOMContentLoaded", () => {
  const place = document.getElementById("ledger-filter");
  if (!place) return;
  const rows = [...document.querySelectorAll("article table tbody tr")];
  const verdict = (row) => row.lastElementChild.textContent.trim();
  const counts = new Map([["all", rows.length]]);
  rows.forEach((row) => counts.set(verdict(row), (counts.get(verdict(row)) ?? 0) + 1));
  place.setAttribute("role", "group");
  place.setAttribute("aria-label", "Show the statements of one verdict");
  const buttons = [...counts].map(([name, count]) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `${name} (${count})`;
    button.addEventListener("click", () => {
      rows.forEach((row) => { row.hidden = name !== "all" && verdict(row) !== name; });
      buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
    });
    place.append(button);
    return button;
  });
  buttons[0].click();
});
