"""What makes failure and cost visible: connection, server, proxy, wire, bench."""
