/**
 * A Helia node behind a trustless gateway, on loopback only: GET and HEAD of /ipfs/CID[/path] are answered by
 * verified-fetch. `POST /add[?path=name]` stores its body as a file, and `POST /dial?address=multiaddr` connects
 * to a peer, whose blocks come over bitswap. Prints one JSON line when ready, and ends with its standard input.
 *
 * Belongs here: what a real gateway has around verified-fetch. Does not: faults; a test that needs one makes it.
 */
import { createServer } from 'node:http'
import { once } from 'node:events'
import { withBitswap } from '@helia/bitswap'
import { withLibp2pLight } from '@helia/libp2p'
import { unixfs } from '@helia/unixfs'
import { createVerifiedFetchWithHelia } from '@helia/verified-fetch'
import { identify } from '@libp2p/identify'
import { noise } from '@libp2p/noise'
import { tcp } from '@libp2p/tcp'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { createHeliaLight } from 'helia'

const PATIENCE = 5_000 // milliseconds without a byte after which a block counts as not to be had
const FORMATS = { car: 'application/vnd.ipld.car', raw: 'application/vnd.ipld.raw' }

// put together by hand, as Helia's defaults ask public routers and gateways
const helia = await withBitswap(withLibp2pLight(createHeliaLight(), {
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: { identify: identify() }
})).start()
const files = unixfs(helia)
const verifiedFetch = await createVerifiedFetchWithHelia(helia)

async function add (url, request) {
  const path = url.searchParams.get('path')
  const cid = path == null
    ? await files.addByteStream(request)
    : await files.addFile({ path, content: request }, { wrapWithDirectory: true })
  return { cid: String(cid) }
}

async function dial (url) {
  const connection = await helia.libp2p.dial(multiaddr(url.searchParams.get('address')))
  return { peer: String(connection.remotePeer) }
}

async function serve (url, request, response) {
  const aborter = new AbortController()
  const timer = setTimeout(() => aborter.abort(), PATIENCE)
  response.once('close', () => { clearTimeout(timer); aborter.abort() })
  const headers = new Headers(request.headers)
  const format = FORMATS[url.searchParams.get('format')]
  if (format != null && !headers.get('accept')?.includes(format)) headers.set('accept', format)
  const { signal } = aborter
  // without a router a session finds no providers, while bitswap alone asks the peers that were dialled
  const fetched = await verifiedFetch(`ipfs://${url.pathname.slice('/ipfs/'.length)}${url.search}`, {
    method: request.method, headers, signal, session: false
  }).catch((error) => {
    if (signal.aborted) return new Response('no block in time', { status: 504 })
    throw error
  })
  response.writeHead(fetched.status, Object.fromEntries(fetched.headers))
  for await (const chunk of fetched.body ?? []) {
    timer.refresh()
    if (!response.write(chunk)) await once(response, 'drain', { signal })
  }
  response.end()
}

async function answer (request, response) {
  const url = new URL(request.url, 'http://localhost')
  const control = { 'POST /add': add, 'POST /dial': dial }[`${request.method} ${url.pathname}`]
  if (control != null) {
    response.end(JSON.stringify(await control(url, request)))
  } else if (['GET', 'HEAD'].includes(request.method) && url.pathname.startsWith('/ipfs/')) {
    await serve(url, request, response)
  } else {
    response.writeHead(404).end()
  }
}

const server = createServer((request, response) => {
  answer(request, response).catch((error) => {
    // a body that has begun cannot say what went wrong: it breaks off
    if (response.headersSent) response.destroy()
    else response.writeHead(500).end(String(error))
  })
})
server.listen(0, '127.0.0.1')
await once(server, 'listening')
process.stdin.resume()
process.stdin.on('end', () => process.exit())
console.log(JSON.stringify({
  url: `http://127.0.0.1:${server.address().port}`,
  address: String(helia.libp2p.getMultiaddrs()[0])
}))
