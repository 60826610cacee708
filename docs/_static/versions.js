// A choice of versions in the sidebar, if the folder above the site has versions.json: [{"name": "0.1.0", "url": "0.1.0/"}, ...].
document.addEventListener("DOMContentLoaded", async () => {
  const place = document.getElementById("versions");
  if (!place || !location.protocol.startsWith("http")) return;
  const above = new URL("../", new URL(place.dataset.root || "./", location.href));
  let versions;
  try {
    const answer = await fetch(new URL("versions.json", above));
    if (!answer.ok) return;
    versions = await answer.json();
  } catch {
    return; // no list, or no network: the site is complete without
  }
  const choice = document.createElement("select");
  choice.setAttribute("aria-label", "Version of this documentation");
  for (const { name, url } of versions) {
    choice.add(new Option(`version ${name}`, new URL(url, above).href, false, name === place.dataset.version));
  }
  choice.addEventListener("change", () => { location.href = choice.value; });
  place.append(choice);
  place.hidden = false;
});
