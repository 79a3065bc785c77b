// Puts the interactive picture in place of the static one. Where a viewer runs no scripts, or the
// browser cannot unpack it, the static one stays.
(() => {
  for (const cell of document.querySelectorAll(".pv-cell[data-live]")) {
    const packed = cell.dataset.live;
    delete cell.dataset.live; // Each cell is unpacked once, whichever cell's script comes first.
    if (typeof DecompressionStream === "undefined") continue;
    const bytes = Uint8Array.from(atob(packed), (char) => char.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    new Response(stream).text().then((html) => {
      // Scripts of such a fragment run when it enters the page.
      cell.replaceChildren(document.createRange().createContextualFragment(html));
    });
  }
})();
