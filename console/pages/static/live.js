// Live: asks for the page again each second and brings what changed into the places that carry [data-live]. Touches nothing else, and no open tab
// that is hidden. Says so when the console does not answer; the numbers stay.
(() => {
  const EVERY_MS = 1000, LOST_MS = 3000;
  let answered = Date.now(), asking = false;

  const same = (a, b) => a.nodeType === b.nodeType && a.nodeName === b.nodeName && (a.id || "") === (b.id || "");
  const morph = (old, now) => { // keeps the nodes there are, and with them focus and selection
    if (old.isEqualNode(now)) return;
    if (old.nodeType !== Node.ELEMENT_NODE) { old.nodeValue = now.nodeValue; return; }
    for (const { name } of [...old.attributes]) if (!now.hasAttribute(name)) old.removeAttribute(name);
    for (const { name, value } of [...now.attributes]) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    let at = old.firstChild; // what carries an id stays the same node: what stands before it comes or goes around it
    for (const node of now.childNodes) {
      let found = at;
      if (node.id) while (found && !same(found, node)) found = found.nextSibling;
      if (found && same(found, node)) {
        while (at !== found) { const gone = at; at = at.nextSibling; gone.remove(); }
        at = found.nextSibling;
        morph(found, node);
      } else old.insertBefore(document.importNode(node, true), at);
    }
    while (at) { const gone = at; at = at.nextSibling; gone.remove(); }
  };
  const lost = (yes) => {
    document.getElementById("lost").hidden = !yes;
    document.body.classList.toggle("stale", yes);
  };
  const ask = async () => {
    if (document.hidden) { answered = Date.now(); return; }
    if (!asking) {
      asking = true;
      try {
        const answer = await fetch(location.href, { signal: AbortSignal.timeout(5000) });
        if (answer.ok) {
          const page = new DOMParser().parseFromString(await answer.text(), "text/html");
          for (const old of document.querySelectorAll("[data-live]")) {
            const now = page.getElementById(old.id);
            if (now) morph(old, now);
          }
          answered = Date.now();
        }
      } catch { /* told below when it lasts */ }
      asking = false;
    }
    lost(Date.now() - answered > LOST_MS);
  };
  setInterval(ask, EVERY_MS);
})();
