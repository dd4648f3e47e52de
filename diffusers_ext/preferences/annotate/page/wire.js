// Asking the server. What goes wrong is an Error with a text for the person, and the status, 0 for no answer.

// Addresses are relative, so that a proxy may serve the page under a folder of its own.

const GONE = "The server does not know this page: open the address that it printed. What you entered here is kept.";
const AWAY = "The server does not answer. What you entered is kept here; try again.";

export const addressOf = (path) => path.replace(/^\//, "");

export async function call(path, body) {
  const request = body && { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, request);
  } catch {
    throw Object.assign(new Error(AWAY), { status: 0 });
  }
  const unread = response.status === 403 ? GONE : `the server answered ${response.status}`;
  const answer = await response.json().catch(() => {
    if (response.ok) throw Object.assign(new Error(AWAY), { status: 0 }); // cut short: the server has gone
    return { error: unread };
  });
  if (!response.ok) throw Object.assign(new Error(answer.error), { status: response.status, answer });
  return answer;
}
