// What is entered and not saved yet, kept in the browser through reloads and restarts of the server.
//
// Drafts stand under the project, as the browser keeps those of all folders that were ever served at this address.
// Storage may be full or forbidden; then a reload loses what is not saved, and everything else works.

const nameOf = (annotator, item) => `annotate/${item.project}/${annotator}/${item.id}`;

// A draft counts only for the same text and pictures in the same order on the page, begun from the same revision.
const groundOf = ({ revision, prompt, digests, display }) => JSON.stringify([revision, prompt, digests, display.shown]);

export function writeDraft(annotator, item, draft) {
  try {
    localStorage.setItem(nameOf(annotator, item), JSON.stringify({ ...draft, ground: groundOf(item) }));
  } catch { /* as above */ }
}

export function readDraft(annotator, item) {
  try {
    const { ground, ...draft } = JSON.parse(localStorage.getItem(nameOf(annotator, item)));
    return ground === groundOf(item) ? draft : null;
  } catch {
    return null;
  }
}

export function dropDraft(annotator, item) {
  try {
    localStorage.removeItem(nameOf(annotator, item));
  } catch { /* as above */ }
}

// Names the content of one judgement. crypto.randomUUID is missing on pages that come over the network without TLS.
export function newNonce() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
