/**
 * A js-ipfs node without a network, with its Kubo-compatible RPC API and its HTTP gateway on loopback.
 * Prints one JSON line when ready, and ends with its standard input. The one argument is its repo's folder.
 */
import { create } from 'ipfs-core'
import { HttpGateway } from 'ipfs-http-gateway'
import { HttpApi } from 'ipfs-http-server'

// the daemon of the `ipfs` package is these three; without its command line it is less than half the size
const ipfs = await create({
  repo: process.argv[2],
  silent: true,
  offline: true,
  preload: { enabled: false },
  init: { algorithm: 'Ed25519' },
  config: {
    Addresses: {
      API: '/ip4/127.0.0.1/tcp/0',
      Gateway: '/ip4/127.0.0.1/tcp/0',
      Swarm: [],
      Delegates: []
    },
    Bootstrap: [],
    Discovery: { MDNS: { Enabled: false }, webRTCStar: { Enabled: false } },
    Pubsub: { Enabled: false },
    Routing: { Type: 'none' },
    Swarm: { DisableNatPortMap: true }
  }
})
const api = new HttpApi(ipfs)
await api.start()
const gateway = new HttpGateway(ipfs)
await gateway.start()

process.stdin.resume()
process.stdin.on('end', () => process.exit())
console.log(JSON.stringify({
  rpc_url: api._apiServers[0].info.uri,
  gateway_url: gateway._gatewayServers[0].info.uri
}))
